"""The data sets: generated Sudoku puzzles, real ones fetched on demand, any CSV by path."""
