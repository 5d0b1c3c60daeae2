def summary(workdir, result): return str(result)
def write(*a): pass
