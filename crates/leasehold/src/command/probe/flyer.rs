//! A program that does DMA into a file, for tests of `guard`.

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
}

impl Flyer {
    pub(crate) fn run(self) -> Outcome {
        Ok(if self.make { flyer::make(&self.file) } else { flyer::run(&self.file) }?)
    }
}
