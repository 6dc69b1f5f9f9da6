//! `kubectl coppice`: what people with a kubeconfig see of their volumes, and do with them. Also `coppice kubectl …`.
//!
//! It runs with its caller's rights and makes ordinary objects: claims, snapshots, and `Lvol` objects that adopt. It talks to
//! the API server only, never to a node.
//!
//! * `cluster`: the way to the API server, and what its refusals mean.
//! * `world`: our objects and what they belong to, read once and joined.
//! * `target`: which object a name means.
//! * `follow`: waiting for others' work, while showing what they say.
//! * the rest: one file for each subcommand.

mod adopt;
mod advice;
mod args;
mod clone;
mod cluster;
mod complete;
mod cordon;
mod describe;
mod drain;
mod dump;
mod events;
mod follow;
mod get;
mod near;
mod objects;
mod print;
mod snapshot;
mod static_pv;
mod target;
mod tree;
mod world;

use crate::Outcome;
use anyhow::Result;
use args::{Adopt, Command};
use clap::{CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::path::Path;

pub use args::{Completion, Kubectl, command};
pub use complete::script_of;

/// The arguments for this subcommand, if that is how the process was called: as kubectl's plugin, as what kubectl asks for
/// completions, or as `coppice kubectl`.
pub fn called(mut args: impl Iterator<Item = OsString>) -> Option<Call> {
    let program = args.next()?;
    let name = Path::new(&program).file_name()?.to_str()?.to_string();
    match name.as_str() {
        "kubectl-coppice" => Some(Call::Run { name: "kubectl coppice", args: args.collect() }),
        "kubectl_complete-coppice" => {
            Some(Call::Complete(args.map(|word| word.to_string_lossy().into_owned()).collect()))
        }
        _ => match args.next() {
            Some(word) if word == "kubectl" => Some(Call::Run { name: "coppice kubectl", args: args.collect() }),
            _ => None,
        },
    }
}

pub enum Call {
    Run {
        /// What people type for it.
        name: &'static str,
        args: Vec<OsString>,
    },
    /// The words after `kubectl coppice`; the last one is being typed.
    Complete(Vec<String>),
}

/// Reads the command line; ends the process where it is wrong, or asks for help only.
pub fn parse(name: &'static str, args: Vec<OsString>) -> Kubectl {
    let words = std::iter::once(OsString::from(name)).chain(args);
    // With the name in two words, usage lines can be typed as they are shown.
    let matches = Kubectl::command().bin_name(name).get_matches_from(words);
    Kubectl::from_arg_matches(&matches).unwrap_or_else(|e| e.exit())
}

pub async fn complete(words: &[String]) -> Result<()> {
    complete::run(words).await
}

pub async fn run(kubectl: Kubectl) -> Result<Outcome> {
    let Kubectl { global, command } = kubectl;
    if let Command::Completion(Completion { shell }) = command {
        script_of(shell, args::command(), "kubectl-coppice")?;
        return Ok(Outcome::Done);
    }
    let cluster = cluster::connect(&global).await?;
    match command {
        Command::Completion(_) => {}
        Command::Get(args) => get::run(&cluster, &args, global.output).await?,
        Command::Tree(args) => tree::run(&cluster, &args, global.output).await?,
        Command::Describe(args) => describe::run(&cluster, &args).await?,
        Command::Snapshot(args) => snapshot::run(&cluster, &args, global.output).await?,
        Command::Clone(args) => clone::run(&cluster, &args, global.output).await?,
        Command::Adopt(Adopt::Lvstore(args)) => adopt::lvstore(&cluster, &args).await?,
        Command::Adopt(Adopt::Lvol(args)) => adopt::lvols(&cluster, &args).await?,
        Command::Cordon(args) => cordon::run(&cluster, &args.what, true).await?,
        Command::Uncordon(args) => cordon::run(&cluster, &args.what, false).await?,
        Command::Drain(args) => return drain::run(&cluster, &args.node).await,
        Command::Dump(args) => dump::run(&cluster, &args).await?,
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(words: &[&str]) -> Option<Call> {
        called(words.iter().map(OsString::from))
    }

    #[test]
    fn the_name_of_the_program_says_what_it_is() {
        let run = |words: &[&str]| match call(words) {
            Some(Call::Run { name, args }) => Some((name, args.len())),
            _ => None,
        };
        assert_eq!(run(&["/usr/bin/kubectl-coppice", "get", "-A"]), Some(("kubectl coppice", 2)));
        assert_eq!(run(&["coppice", "kubectl", "get"]), Some(("coppice kubectl", 1)));
        assert!(call(&["coppice", "lvol", "kubectl"]).is_none() && call(&["coppice"]).is_none());
        assert!(matches!(call(&["kubectl_complete-coppice", "g"]), Some(Call::Complete(words)) if words == ["g"]));
    }
}
