"""Tests of curation; a package, so that a fixture of scope `package` ends with them."""
