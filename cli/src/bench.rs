//! Place of `coppice bench`.

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct BenchArgs {}

pub async fn run(_: BenchArgs, _json: bool) -> Result<()> {
    bail!("not in this build")
}
