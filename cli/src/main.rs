//! The one binary: reads the command line, runs one command, says how it ended.
//!
//! Exit codes: 0 done, 1 refused or found something, 2 wrong usage.

mod args;
mod bench;
mod connect;
mod controller;
mod crds;
mod demo;
mod guard;
mod http;
mod lvol;
mod lvstore;
mod node;
mod output;
mod quiesce;
mod serving;
mod size;
mod standalone;
mod stdin;
mod tree;
mod wipe;

use anyhow::Result;
use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// `lvstore check` has something to say.
    Found,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match done.map_err(Into::into).and_then(|runtime| runtime.block_on(run(cli))) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Found) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {}", output::clean(&format!("{error:#}")));
            ExitCode::from(1)
        }
    }
}

/// Logs go to standard error; COPPICE_LOG says which (error, warn, info, debug, or a filter per module).
fn log(default: &str) {
    let filter = EnvFilter::try_from_env("COPPICE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colour).with_env_filter(filter).init();
}

async fn run(cli: Cli) -> Result<Outcome> {
    let Cli { global, command } = cli;
    if global.image.is_some() && !matches!(command, Command::Lvstore(_) | Command::Lvol(_)) {
        args::wrong_usage("--image goes with lvstore and lvol only");
    }
    let serves = matches!(command, Command::Standalone(_) | Command::Node(_) | Command::Controller(_));
    log(if serves { "info" } else { "warn" });
    match command {
        Command::Lvstore(command) => return lvstore::run(&global, command).await,
        Command::Lvol(command) => lvol::run(&global, command).await?,
        Command::Demo(args) => demo::run(args).await?,
        Command::Standalone(args) => standalone::run(args).await?,
        Command::Bench(args) => bench::run(args, global.output == output::Format::Json).await?,
        Command::Crds => crds::run(global.output)?,
        Command::Node(args) => node::run(args).await?,
        Command::Controller(args) => controller::run(args).await?,
    }
    Ok(Outcome::Done)
}
