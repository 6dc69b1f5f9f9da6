//! The agent with the real engine, over stores in files, against an API server in this process.

mod across;
mod killed;
mod lvols;
mod lvstores;
mod offline;
mod orphans;
mod rig;
mod trouble;
