//! Place of `coppice demo`.

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct DemoArgs {}

pub async fn run(_: DemoArgs) -> Result<()> {
    bail!("not in this build")
}
