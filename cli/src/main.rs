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
mod kubectl;
mod lvol;
mod lvstore;
mod node;
mod output;
mod quiesce;
mod remote;
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
    let asked = match kubectl::called(std::env::args_os()) {
        Some(kubectl::Call::Run { name, args }) => Asked::Kubectl(kubectl::parse(name, args)),
        Some(kubectl::Call::Complete(words)) => Asked::Complete(words),
        None => Asked::Coppice(Cli::parse()),
    };
    let done = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match done.map_err(Into::into).and_then(|runtime| runtime.block_on(answer(asked))) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Found) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {}", output::clean(&format!("{error:#}")));
            ExitCode::from(1)
        }
    }
}

/// What the process was called for; see `kubectl::called`.
enum Asked {
    Coppice(Cli),
    Kubectl(kubectl::Kubectl),
    Complete(Vec<String>),
}

async fn answer(asked: Asked) -> Result<Outcome> {
    match asked {
        Asked::Coppice(cli) => run(cli).await,
        Asked::Kubectl(kubectl) => {
            log("error");
            kubectl::run(kubectl).await
        }
        Asked::Complete(words) => kubectl::complete(&words).await.map(|()| Outcome::Done),
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
        Command::Kubectl(args) => return kubectl::run(kubectl::parse("coppice kubectl", args.words)).await,
        Command::Completion(args) => kubectl::script_of(args.shell, args::whole(), "coppice")?,
        Command::Node(args) => node::run(args).await?,
        Command::Controller(args) => controller::run(args).await?,
    }
    Ok(Outcome::Done)
}
