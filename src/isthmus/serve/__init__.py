"""What serving needs beside a model: no data set and no training is imported here."""
