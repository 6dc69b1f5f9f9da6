//! Completion: scripts for shells, and the answers to what kubectl asks.
//!
//! kubectl (1.26 and later) runs `kubectl_complete-coppice WORD…` for its plugin: one candidate a line, then `:N`. Bit 4 of N says that
//! files are no candidates. Names come from the cluster; one that does not answer at once is not waited for.

use super::args::{Global, Kubectl};
use super::cluster::{self, Cluster, list};
use crate::output;
use anyhow::Result;
use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use kube::ResourceExt;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

const NO_FILES: &str = ":4\n";
const FILES: &str = ":0\n";
const PATIENCE: Duration = Duration::from_secs(2);

/// Prints the script of a shell for `command`, which is called by `name`.
pub fn script_of(shell: Shell, mut command: Command, name: &str) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    output::print(&String::from_utf8_lossy(&text))
}

pub async fn run(words: &[String]) -> Result<()> {
    let (before, typed) = match words.split_last() {
        Some((last, before)) => (before, last.as_str()),
        None => (words, ""),
    };
    let command = whole();
    let place = Place::of(&command, before);
    let mut found = place.words(typed);
    if found.is_empty()
        && let Some(kind) = place.wants()
    {
        let names = tokio::time::timeout(PATIENCE, names(&place.global, kind));
        found = names.await.unwrap_or_default().into_iter().filter(|name| name.starts_with(typed)).collect();
    }
    let end = if place.wants_file() { FILES } else { NO_FILES };
    output::print(&(found.iter().map(|word| format!("{word}\n")).collect::<String>() + end))
}

/// With global options in every subcommand, and its help.
fn whole() -> Command {
    let mut command = Kubectl::command();
    command.build();
    command
}

/// Where in the command line the word is that is being typed.
struct Place<'a> {
    command: &'a Command,
    /// The option whose value it is.
    option: Option<&'a Arg>,
    /// How many positional arguments stand before it.
    position: usize,
    global: Global,
}

/// Kinds of names that the cluster knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Claims,
    Sources,
    Anything,
    Nodes,
    Lvstores,
    NodesAndLvstores,
    Classes,
    SnapshotClasses,
}

impl<'a> Place<'a> {
    fn of(command: &'a Command, before: &[String]) -> Place<'a> {
        let mut place = Place { command, option: None, position: 0, global: Global::default() };
        for word in before {
            if let Some(option) = place.option.take() {
                place.note(option, word);
            } else if let Some(option) = word.strip_prefix('-') {
                let long = option.strip_prefix('-');
                let (name, value) = match option.split_once('=') {
                    Some((_, value)) => (long.unwrap_or(option).split('=').next().unwrap_or_default(), Some(value)),
                    None => (long.unwrap_or(option), None),
                };
                let is = |arg: &&Arg| match long {
                    Some(_) => arg.get_long() == Some(name),
                    None => arg.get_short().is_some_and(|short| name.starts_with(short)),
                };
                let found = place.command.get_arguments().find(is).filter(|arg| arg.get_action().takes_values());
                match (found, value) {
                    (Some(arg), Some(value)) => place.note(arg, value),
                    (found, _) => place.option = found,
                }
            } else if let Some(inner) = place.command.find_subcommand(word) {
                place.command = inner;
            } else {
                place.position += 1;
            }
        }
        place
    }

    fn note(&mut self, option: &Arg, value: &str) {
        match option.get_id().as_str() {
            "namespace" => self.global.namespace = Some(value.to_string()),
            "context" => self.global.context = Some(value.to_string()),
            "kubeconfig" => self.global.kubeconfig = Some(PathBuf::from(value)),
            _ => {}
        }
    }

    /// The argument that is being typed, unless it is an option's name.
    fn argument(&self) -> Option<&'a Arg> {
        self.option.or_else(|| {
            let mut all = self.command.get_positionals();
            let nth = all.nth(self.position);
            nth.or_else(|| {
                self.command
                    .get_positionals()
                    .last()
                    .filter(|arg| arg.get_num_args().is_some_and(|n| n.max_values() > 1))
            })
        })
    }

    /// What the command line itself knows: subcommands, options, values.
    fn words(&self, typed: &str) -> Vec<String> {
        let mut all = Vec::new();
        if self.option.is_none() && typed.starts_with('-') {
            let options = self.command.get_arguments().filter(|arg| !arg.is_hide_set());
            all.extend(options.filter_map(|arg| Some(format!("--{}\t{}", arg.get_long()?, help(arg.get_help())))));
        } else {
            if self.option.is_none() && self.position == 0 {
                let inner = self.command.get_subcommands().filter(|inner| inner.get_name() != "help");
                all.extend(inner.map(|inner| format!("{}\t{}", inner.get_name(), help(inner.get_about()))));
            }
            let values = self.argument().map(Arg::get_possible_values).unwrap_or_default();
            all.extend(values.iter().map(|value| format!("{}\t{}", value.get_name(), help(value.get_help()))));
        }
        let all = all.into_iter().map(|line| line.trim_end().to_string());
        all.filter(|line| line.starts_with(typed)).collect()
    }

    fn wants(&self) -> Option<Names> {
        Some(match (self.command.get_name(), self.argument()?.get_id().as_str()) {
            ("snapshot", "pvc") => Names::Claims,
            ("snapshot", "class") => Names::SnapshotClasses,
            ("clone", "source") => Names::Sources,
            ("tree" | "describe", "name") => Names::Anything,
            ("cordon" | "uncordon", "what") => Names::NodesAndLvstores,
            ("drain" | "clone" | "lvol", "node") => Names::Nodes,
            ("lvstore", "name") => Names::Lvstores,
            ("clone" | "lvol", "class") => Names::Classes,
            _ => return None,
        })
    }

    fn wants_file(&self) -> bool {
        self.argument().is_some_and(|arg| matches!(arg.get_id().as_str(), "kubeconfig" | "to"))
    }
}

/// The first line.
fn help(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(|text| text.to_string().lines().next().unwrap_or_default().to_string()).unwrap_or_default()
}

/// None where the cluster does not say.
async fn names(global: &Global, kind: Names) -> BTreeSet<String> {
    let Ok(cluster) = cluster::connect(global).await else { return BTreeSet::new() };
    let mut names = BTreeSet::new();
    if matches!(kind, Names::Claims | Names::Sources | Names::Anything) {
        add(&mut names, list(&cluster.claims(&cluster.namespace)).await);
    }
    if matches!(kind, Names::Sources | Names::Anything) {
        add(&mut names, list(&cluster.snapshots(&cluster.namespace)).await);
    }
    match kind {
        Names::Nodes | Names::Lvstores | Names::NodesAndLvstores => stores(&cluster, kind, &mut names).await,
        Names::SnapshotClasses => add(&mut names, list(&cluster.of_snapshots("VolumeSnapshotClass")).await),
        Names::Classes => {
            let api: kube::Api<k8s_openapi::api::storage::v1::StorageClass> = kube::Api::all(cluster.client.clone());
            add(&mut names, list(&api).await);
        }
        Names::Claims | Names::Sources | Names::Anything => {}
    }
    names
}

async fn stores(cluster: &Cluster, kind: Names, names: &mut BTreeSet<String>) {
    for store in list(&cluster.lvstores()).await.unwrap_or_default() {
        if kind != Names::Lvstores {
            names.insert(store.spec.node.clone());
        }
        if kind != Names::Nodes {
            names.insert(store.name_any());
        }
    }
}

fn add<K: ResourceExt>(names: &mut BTreeSet<String>, found: kube::Result<Vec<K>>) {
    names.extend(found.unwrap_or_default().iter().map(ResourceExt::name_any));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str], typed: &str) -> Vec<String> {
        let command = whole();
        let before: Vec<String> = line.iter().map(|word| word.to_string()).collect();
        let found = Place::of(&command, &before).words(typed);
        found.into_iter().map(|word| word.split('\t').next().unwrap_or_default().to_string()).collect()
    }

    fn wants(line: &[&str]) -> Option<Names> {
        let command = whole();
        let before: Vec<String> = line.iter().map(|word| word.to_string()).collect();
        Place::of(&command, &before).wants()
    }

    #[test]
    fn what_the_command_line_knows() {
        assert_eq!(words(&[], "d"), ["describe", "drain", "dump"]);
        assert_eq!(words(&["get"], ""), ["volumes", "snapshots", "lvstores"]);
        assert_eq!(words(&["-n", "x", "adopt"], "lv"), ["lvstore", "lvol"]);
        assert_eq!(words(&["clone", "a", "b"], "--dry"), ["--dry-run"]);
        assert!(words(&["tree"], "-").contains(&"--namespace".to_string()), "global options are everywhere");
        assert_eq!(words(&["get", "-o"], "j"), ["json"]);
        assert_eq!(words(&["completion"], "ba"), ["bash"]);
    }

    #[test]
    fn what_the_cluster_is_asked() {
        assert_eq!(wants(&["clone"]), Some(Names::Sources));
        assert_eq!(wants(&["clone", "a"]), None, "the name is new");
        assert_eq!(wants(&["clone", "a", "b", "--class"]), Some(Names::Classes));
        assert_eq!(wants(&["snapshot", "--class"]), Some(Names::SnapshotClasses));
        assert_eq!(wants(&["adopt", "lvstore"]), Some(Names::Lvstores));
        assert_eq!(wants(&["cordon"]), Some(Names::NodesAndLvstores));
        let command = whole();
        let place = Place::of(
            &command,
            &["--context=c".to_string(), "-n".to_string(), "x".to_string(), "describe".to_string()],
        );
        assert_eq!((place.global.context.as_deref(), place.global.namespace.as_deref()), (Some("c"), Some("x")));
    }
}
