"""One reader per raw format; all of them give the same raw records."""
