//! The program under test.

use std::path::PathBuf;

/// `COPPICE_BIN`, if it is set: the long tests try the release binary, and are built once, without optimisation, themselves.
pub fn coppice() -> PathBuf {
    std::env::var_os("COPPICE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_coppice").into()).into()
}
