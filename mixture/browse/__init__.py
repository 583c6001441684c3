"""Pages to look at a mixture: a folder of static HTML that opens from disk, without a server or network."""
