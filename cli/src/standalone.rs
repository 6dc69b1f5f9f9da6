//! Place of `coppice standalone`.

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct StandaloneArgs {}

pub async fn run(_: StandaloneArgs) -> Result<()> {
    bail!("not in this build")
}
