"""Names and layouts of published weights, one file a source."""
