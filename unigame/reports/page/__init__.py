"""One self-contained page on a run or several: verdict, table, pictures, dynamics, settings."""
