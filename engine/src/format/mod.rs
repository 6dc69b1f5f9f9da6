//! Bytes on disk: super block, metadata pages, descriptors, masks, CRC. Pure; no I/O.
