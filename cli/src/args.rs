//! The command line: every subcommand and option, and nothing else.

use crate::output::Format;
use crate::{bench, controller, demo, kubectl, node, size, standalone};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::path::PathBuf;

const SIZES: &str = "Sizes are bytes, or a number with K, M, G, T; units are always powers of 1024 (64K, 1.5G, 10GiB).
A lvol is named by UUID, by alias (lvstore/name) or, where it is unique, by name.
Exit codes: 0 done, 1 refused or found something, 2 wrong usage.";

/// Volumes with snapshots and clones on local drives.
#[derive(Parser)]
#[command(name = "coppice", version, after_help = SIZES, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Work on this closed lvstore, without a running process
    #[arg(long, global = true, value_name = "FILE|DEV")]
    pub image: Option<PathBuf>,
    /// Where the running process has its admin socket
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/coppice")]
    pub run_dir: PathBuf,
    /// With --image: the snapshot of that UUID, which lvols of the lvstore have as external parent, is this file or device
    #[arg(long, global = true, value_name = "UUID=FILE|DEV", value_parser = external_file)]
    pub external: Vec<(uuid::Uuid, PathBuf)>,
    /// How the answer is printed
    #[arg(short = 'o', long = "output", global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
}

#[derive(Subcommand)]
pub enum Command {
    /// The whole life of a volume on this machine, narrated
    Demo(demo::DemoArgs),
    /// CSI on one socket, without Kubernetes
    Standalone(standalone::StandaloneArgs),
    /// The node's role in Kubernetes
    Node(node::NodeArgs),
    /// The controller's role in Kubernetes
    Controller(controller::ControllerArgs),
    /// Lvstores: pools of space on a file or device
    #[command(subcommand, after_help = SIZES)]
    Lvstore(Lvstore),
    /// Lvols: volumes, snapshots and clones
    #[command(subcommand, after_help = SIZES)]
    Lvol(Lvol),
    /// The engine's I/O benchmark: raw device against lvol, in one run
    Bench(bench::BenchArgs),
    /// The definitions of the Kubernetes kinds Lvol and Lvstore, as YAML for kubectl apply
    Crds,
    /// Volumes as users of the cluster see them; as kubectl's plugin: kubectl coppice
    #[command(disable_help_flag = true)]
    Kubectl(KubectlWords),
    /// Print a completion script
    Completion(kubectl::Completion),
}

/// A command line of its own, which `kubectl` reads.
#[derive(Args)]
pub struct KubectlWords {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub words: Vec<std::ffi::OsString>,
}

/// All commands with theirs, for completion.
pub fn whole() -> clap::Command {
    Cli::command().mut_subcommand("kubectl", |_| kubectl::command().name("kubectl"))
}

#[derive(Subcommand)]
pub enum Lvstore {
    /// Format a file or device that is blank
    #[command(after_help = SIZES)]
    Create(StoreCreate),
    /// List the lvstores
    Ls,
    /// One lvstore: sizes, accounting, and whether SPDK could read it now
    Show(OneStore),
    /// Take up the room that the device gained
    Grow(OneStore),
    /// Verify every invariant; exit code 1 and a list if something is found
    Check(OneStore),
    /// Finish what is private, so that a close leaves a plain SPDK store
    Seal(OneStore),
    /// Remove a closed lvstore: its device is blank afterwards
    Rm(StoreRm),
}

#[derive(Args)]
pub struct OneStore {
    /// Name or UUID; may be left out if there is only one
    #[arg(value_name = "LVSTORE", default_value = "", hide_default_value = true)]
    pub store: String,
}

#[derive(Args)]
pub struct StoreCreate {
    /// What to format
    #[arg(value_name = "FILE|DEV")]
    pub path: Option<PathBuf>,
    /// Make a sparse file of that many bytes
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub size: Option<u64>,
    /// Name of the lvstore [default: that of the file or device, without its extension]
    #[arg(long)]
    pub name: Option<String>,
    /// A power of two from 4K to 1G [default: chosen by measurement, see docs/cluster-size.md]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    pub cluster_size: Option<u32>,
    /// Keep room to grow up to this size [default: four times the device]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub max_size: Option<u64>,
    /// Bytes of a logical block of the lvols, 512 or 4096 [default: the device's; 4096 on a file]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    pub block_size: Option<u32>,
    /// Format it even if it holds something: what is there is lost
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct StoreRm {
    /// Where the lvstore is
    #[arg(value_name = "FILE|DEV")]
    pub path: Option<PathBuf>,
    /// Remove it even if it has lvols, or does not check out: what is there is lost
    #[arg(long)]
    pub force: bool,
}

#[derive(Subcommand)]
pub enum Lvol {
    /// Make an empty lvol, thin unless told otherwise
    #[command(after_help = SIZES)]
    Create(LvolCreate),
    /// List the lvols
    Ls(LvolLs),
    /// Draw what came from what, with sizes, own and inherited space
    Tree(OneStore),
    /// One lvol with everything that is known of it
    Show(OneLvol),
    /// Take a snapshot of a lvol; the lvol goes on as its child
    Snapshot(LvolSnapshot),
    /// Make a writable clone of a snapshot
    #[command(after_help = SIZES)]
    Clone(LvolClone),
    /// Make a clone of a snapshot in another lvstore, here or on another node: usable at once, copied over in the background
    #[command(after_help = SIZES)]
    CloneExternal(CloneExternal),
    /// Wait until a clone of a snapshot elsewhere has everything itself, and needs nobody any more
    Hydrate(OneLvol),
    /// Keep a snapshot for an lvstore elsewhere, and let that read it
    Pin(LvolPin),
    /// Nothing in that lvstore reads the snapshot any more, or it is lost for good
    Unpin(LvolUnpin),
    /// Change the size of a lvol
    #[command(after_help = SIZES)]
    Resize(LvolResize),
    /// Give a lvol another name
    Rename(LvolRename),
    /// Go back to one of the lvol's snapshots: what was written since is lost
    Revert(LvolRevert),
    /// Copy everything that the lvol reads from its ancestors, and cut the link
    Inflate(OneLvol),
    /// Copy what the lvol reads from its direct parent, and hang it under the grandparent
    Decouple(OneLvol),
    /// Delete a lvol or snapshot
    Rm(LvolRm),
    /// Write the bytes of a lvol to standard output
    #[command(after_help = SIZES)]
    Read(LvolRead),
    /// Write standard input into a lvol; durable when the command ends
    #[command(after_help = SIZES)]
    Write(LvolWrite),
    /// Make a lvol a block device, and print its path, or say where it is served over NBD (running process only)
    Export(LvolExport),
}

#[derive(Args)]
pub struct OneLvol {
    pub lvol: String,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("how_large").required(true).args(["size", "size_option"]))]
pub struct LvolCreate {
    pub name: String,
    /// Rounded up to whole clusters
    #[arg(value_parser = size::parse)]
    size: Option<u64>,
    /// The same as SIZE
    #[arg(long = "size", value_name = "SIZE", value_parser = size::parse)]
    size_option: Option<u64>,
    /// Reserve the space now: writes never fail for lack of it
    #[arg(long)]
    pub thick: bool,
    /// In which lvstore; may be left out if there is only one
    #[arg(long, default_value = "", hide_default_value = true)]
    pub lvstore: String,
}

impl LvolCreate {
    pub fn size(&self) -> u64 {
        // One of them is there: the group is required.
        self.size.or(self.size_option).unwrap_or_default()
    }
}

#[derive(Args)]
pub struct LvolLs {
    /// Only those of this lvstore
    #[arg(value_name = "LVSTORE", default_value = "", hide_default_value = true)]
    pub store: String,
    /// Also deleted snapshots that something still reads
    #[arg(long)]
    pub hidden: bool,
}

#[derive(Args)]
pub struct LvolSnapshot {
    pub lvol: String,
    /// Name of the snapshot
    pub name: String,
}

#[derive(Args)]
pub struct LvolClone {
    pub snapshot: String,
    /// Name of the clone
    pub name: String,
    /// At least that of the snapshot [default: the same]
    #[arg(long, value_parser = size::parse)]
    pub size: Option<u64>,
    /// Reserve the space now: writes never fail for lack of it
    #[arg(long)]
    pub thick: bool,
}

#[derive(Args)]
pub struct CloneExternal {
    /// UUID of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub parent: uuid::Uuid,
    /// Name of the clone
    pub name: String,
    /// In which lvstore; may be left out if there is only one
    #[arg(long, default_value = "", hide_default_value = true)]
    pub lvstore: String,
    /// At least that of the snapshot [default: the same]
    #[arg(long, value_parser = size::parse)]
    pub size: Option<u64>,
    /// Reserve the space now: writes never fail for lack of it
    #[arg(long)]
    pub thick: bool,
    /// Copy nothing over: go on reading from the snapshot
    #[arg(long)]
    pub no_hydration: bool,
}

#[derive(Args)]
pub struct LvolPin {
    pub snapshot: String,
    /// The lvstore that depends on it
    #[arg(long, value_name = "UUID")]
    pub lvstore: uuid::Uuid,
    /// Who may read it: the DNS name in the certificate of the process that has that lvstore
    #[arg(long, value_name = "NAME")]
    pub reader: String,
}

#[derive(Args)]
pub struct LvolUnpin {
    pub snapshot: String,
    /// The lvstore that depended on it
    #[arg(long, value_name = "UUID")]
    pub lvstore: uuid::Uuid,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("how_large").required(true).args(["size", "size_option"]))]
pub struct LvolResize {
    pub lvol: String,
    /// Rounded up to whole clusters. A smaller size cuts off what is behind it
    #[arg(value_parser = size::parse)]
    size: Option<u64>,
    /// The same as SIZE
    #[arg(long = "size", value_name = "SIZE", value_parser = size::parse)]
    size_option: Option<u64>,
}

impl LvolResize {
    pub fn size(&self) -> u64 {
        self.size.or(self.size_option).unwrap_or_default()
    }
}

#[derive(Args)]
pub struct LvolRename {
    pub lvol: String,
    /// The new name
    pub name: String,
}

#[derive(Args)]
pub struct LvolRevert {
    pub lvol: String,
    pub snapshot: String,
}

#[derive(Args)]
pub struct LvolRm {
    pub lvol: String,
    /// A snapshot that several clones read is hidden now and reclaimed when they are gone, instead of refused
    #[arg(long)]
    pub deferred: bool,
}

#[derive(Args)]
pub struct LvolRead {
    pub lvol: String,
    /// Where to begin
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size::parse)]
    pub offset: u64,
    /// How many bytes [default: up to the end]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub length: Option<u64>,
    /// Even to a terminal
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct LvolWrite {
    pub lvol: String,
    /// Where to begin
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size::parse)]
    pub offset: u64,
}

#[derive(Args)]
pub struct LvolExport {
    pub lvol: String,
    /// The device refuses writes (always so for snapshots)
    #[arg(long)]
    pub read_only: bool,
    /// Take the device away again
    #[arg(long, conflicts_with = "read_only")]
    pub stop: bool,
    /// No device: print the URI under which any NBD client on this machine can read the lvol
    #[arg(long, conflicts_with_all = ["read_only", "stop"])]
    pub nbd: bool,
}

/// `UUID=FILE`
pub fn external_file(text: &str) -> Result<(uuid::Uuid, PathBuf), String> {
    let (id, path) = text.split_once('=').ok_or("UUID=FILE is expected")?;
    let id = uuid::Uuid::try_parse(id).map_err(|e| format!("{id:?} is no UUID: {e}"))?;
    if path.is_empty() { Err("a file is missing behind the =".into()) } else { Ok((id, path.into())) }
}

/// Ends the process as clap does on wrong usage: a message, a hint, exit code 2. Call before anything is open.
pub fn wrong_usage(message: &str) -> ! {
    Cli::command().error(clap::error::ErrorKind::MissingRequiredArgument, message).exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        for line in [
            ["coppice", "--image", "x", "lvol", "ls", "-o", "json"],
            ["coppice", "lvol", "ls", "-o", "json", "--image", "x"],
            ["coppice", "-o", "json", "lvol", "--image", "x", "ls"],
        ] {
            let cli = Cli::try_parse_from(line).expect("parses");
            assert_eq!(cli.global.image, Some(PathBuf::from("x")), "{line:?}");
            assert_eq!(cli.global.output, Format::Json, "{line:?}");
        }
    }
}
