"""Before the network: files and arrays in, arrays and tables out."""
