"""What the programs of several tasks share. Each program first puts the folder above on sys.path,
so that it finds this package and those beside it from whatever folder it is started."""
