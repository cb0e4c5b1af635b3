"""What ``raypipe demo`` needs beside the jobs themselves."""
