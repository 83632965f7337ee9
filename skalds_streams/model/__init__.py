"""What goes over the wire: events, Task documents, records, and the codec between bytes and the core's values."""
