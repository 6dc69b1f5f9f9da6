//! The command line of `kubectl coppice`: every subcommand and option, and nothing else.

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::path::PathBuf;
use std::time::Duration;

const NAMES: &str =
    "A PVC, VolumeSnapshot or lvol is named as pvc/NAME, snapshot/NAME or lvol/NAME; the NAME alone does where it
can mean one thing only. Exit codes: 0 done, 1 refused or found something, 2 wrong usage.";

/// Volumes of Coppice, their snapshots and clones, as kubectl's plugin
#[derive(Parser)]
#[command(name = "kubectl-coppice", version, after_help = NAMES, arg_required_else_help = true)]
pub struct Kubectl {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// The command, for shell completions of `coppice`.
pub fn command() -> clap::Command {
    Kubectl::command()
}

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options as of kubectl")]
pub struct Global {
    /// The kubeconfig to use
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace [default: that of the context]
    #[arg(short = 'n', long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How the answer is printed
    #[arg(short = 'o', long = "output", global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// With more columns
    Wide,
    /// The objects, as JSON
    Json,
    /// The objects, as YAML
    Yaml,
}

#[derive(Subcommand)]
pub enum Command {
    /// A table of volumes, snapshots or lvstores
    Get(Get),
    /// Volumes, snapshots and clones of all nodes as one picture: what came from what, and whose it is
    Tree(Tree),
    /// All that is known of one volume or snapshot, with what its state means and what to do
    #[command(after_help = NAMES)]
    Describe(Describe),
    /// Take a snapshot of a PVC: makes an ordinary VolumeSnapshot
    Snapshot(Snapshot),
    /// Make a PVC from a VolumeSnapshot or another PVC: an ordinary PVC with a data source
    #[command(after_help = NAMES)]
    Clone(Clone),
    /// Take over lvstores of other clusters, or lvols whose objects are gone
    #[command(subcommand)]
    Adopt(Adopt),
    /// No new volumes on a node, or in a lvstore
    Cordon(Which),
    /// New volumes again
    Uncordon(Which),
    /// Tell what would be lost with a node; changes nothing. Exit code 1 if there is something
    Drain(Drain),
    /// Collect what a report of a fault needs: objects, pods, logs, Events; no secrets
    Dump(Dump),
    /// Print a completion script
    Completion(Completion),
}

#[derive(Args)]
pub struct Completion {
    pub shell: Shell,
}

#[derive(Args)]
pub struct Get {
    #[arg(value_name = "KIND", default_value = "volumes")]
    pub what: What,
    /// Of all namespaces, and what belongs to none
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    #[value(aliases = ["volume", "pvc", "pvcs"])]
    Volumes,
    #[value(aliases = ["snapshot", "vs"])]
    Snapshots,
    #[value(alias = "lvstore")]
    Lvstores,
}

#[derive(Args)]
pub struct Tree {
    /// Only the family of this PVC, VolumeSnapshot or lvol
    pub name: Option<String>,
    /// Of all namespaces, and what belongs to none
    #[arg(short = 'A', long, conflicts_with = "name")]
    pub all_namespaces: bool,
}

#[derive(Args)]
pub struct Describe {
    #[arg(value_name = "PVC|SNAPSHOT|LVOL")]
    pub name: String,
}

#[derive(Args)]
pub struct Snapshot {
    pub pvc: String,
    /// Name of the VolumeSnapshot [default: PVC-YYYYMMDD-HHMMSS]
    pub name: Option<String>,
    /// The VolumeSnapshotClass [default: the cluster's, or the only one of the driver]
    #[arg(long)]
    pub class: Option<String>,
    #[command(flatten)]
    pub follow: Follow,
    /// Print the object and make nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct Clone {
    #[arg(value_name = "SNAPSHOT|PVC")]
    pub source: String,
    /// Name of the new PVC
    pub new: String,
    /// The node to make it on, without waiting for a pod [default: that of the source]
    #[arg(long)]
    pub node: Option<String>,
    /// The StorageClass [default: the source's if it binds at once, or one that is like it and does]
    #[arg(long)]
    pub class: Option<String>,
    /// A Kubernetes quantity, at least the source's [default: the source's]
    #[arg(long)]
    pub size: Option<String>,
    #[command(flatten)]
    pub follow: Follow,
    /// Print the object and make nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct Follow {
    /// Wait until it can be used, and show what is said of it meanwhile
    #[arg(long)]
    pub wait: bool,
    /// The most to wait, as 90s, 5m or 1h
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = seconds)]
    pub timeout: Duration,
}

#[derive(Subcommand)]
pub enum Adopt {
    /// Let a Lvstore object take over the store of another cluster, or one made outside Kubernetes
    Lvstore(AdoptLvstore),
    /// Make the objects again of lvols that lost theirs
    Lvol(AdoptLvol),
}

#[derive(Args)]
pub struct AdoptLvstore {
    /// The Lvstore object
    pub name: String,
    /// The store to take over [default: the one that its status names]
    #[arg(long)]
    pub uuid: Option<uuid::Uuid>,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["lvols", "all"]))]
pub struct AdoptLvol {
    /// UUIDs or names of the lvols
    #[arg(value_name = "UUID|NAME")]
    pub lvols: Vec<String>,
    /// Every lvol that has no object
    #[arg(long)]
    pub all: bool,
    /// Only those of this node
    #[arg(long)]
    pub node: Option<String>,
    /// Make a PersistentVolume too for volumes that have none. Its policy is Retain
    #[arg(long)]
    pub pv: bool,
    /// The claim that the PersistentVolume is for [default: the one that the volume was made for]
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "pv")]
    pub claim: Option<String>,
    /// The StorageClass that the PersistentVolume names [default: the claim's]
    #[arg(long, value_name = "NAME", requires = "pv")]
    pub class: Option<String>,
    /// The PersistentVolume is a raw block volume [default: the claim's; without one, if no file system is known]
    #[arg(long, requires = "pv")]
    pub block: bool,
    /// The most to wait until the nodes have seen them
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = seconds)]
    pub timeout: Duration,
    /// Print the objects and make nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct Which {
    /// A node, with all its lvstores, or a Lvstore object
    #[arg(value_name = "NODE|LVSTORE")]
    pub what: String,
}

#[derive(Args)]
pub struct Drain {
    pub node: String,
}

#[derive(Args)]
pub struct Dump {
    /// The archive to write, or a folder if it ends in / [default: coppice-dump-YYYYMMDD-HHMMSS.tar.gz]
    #[arg(value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// `90`, `90s`, `5m`, `1h`.
fn seconds(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{text:?}: a number with s, m or h, as 90s")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?}: a number with s, m or h, as 90s"))?;
    let seconds = number.checked_mul(factor).filter(|seconds| *seconds <= 7 * 24 * 3600);
    seconds.map(Duration::from_secs).ok_or_else(|| "more than a week".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        for line in [
            ["kubectl-coppice", "-n", "x", "-o", "json", "get", "lvstores"],
            ["kubectl-coppice", "get", "lvstores", "-o", "json", "-n", "x"],
        ] {
            let parsed = Kubectl::try_parse_from(line).expect("parses");
            assert_eq!(
                (parsed.global.namespace.as_deref(), parsed.global.output),
                (Some("x"), Output::Json),
                "{line:?}"
            );
        }
    }

    #[test]
    fn times() {
        assert_eq!(seconds("90"), Ok(Duration::from_secs(90)));
        assert_eq!(seconds("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "m", "1.5m", "-1s", "1d", "99999999999999999999", "1000h"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
