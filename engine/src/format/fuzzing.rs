//! Entry points for fuzzers: any bytes in, no panic, and what parses survives being written and read again.
