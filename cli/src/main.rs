//! `coppice`: one binary with subcommands.

mod bench;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "coppice", version, about = "Volumes, snapshots and clones on local drives")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// `json` for programs.
    #[arg(short, long, global = true, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::BenchArgs),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Bench(args) => bench::run(args, cli.output == "json"),
    }
}
