def write(store, path):
    pass
