"""The base of records, and the records that other records hold."""
