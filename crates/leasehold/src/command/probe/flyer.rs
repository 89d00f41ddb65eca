//! A program that does DMA into a file, for tests of `guard` and for the lab.

use crate::command::exit::Outcome;
use leasehold_host::probe::flyer;
use std::path::PathBuf;

/// Does DMA into a file, as told on standard input; not for people
#[derive(Debug, clap::Args)]
pub(crate) struct Flyer {
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only make the file
    #[arg(long)]
    make: bool,
    /// Make it, and write to it by an RDMA device, durably as far as the kernel says
    #[arg(long)]
    remote: bool,
    /// How many pages of that write are not on the disk
    #[arg(long)]
    lost: bool,
}

impl Flyer {
    pub(crate) fn run(self) -> Outcome {
        let act = match self {
            Flyer { make: true, .. } => flyer::make,
            Flyer { remote: true, .. } => flyer::remote,
            Flyer { lost: true, .. } => flyer::lost,
            _ => flyer::run,
        };
        Ok(act(&self.file)?)
    }
}
