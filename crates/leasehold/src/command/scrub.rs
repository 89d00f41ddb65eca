//! `leasehold scrub`: is every block what was committed?

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::place;
use crate::command::show;
use crate::size::Size;
use leasehold_client::{ScrubOptions, proto};
use serde_json::{Value, json};
use std::num::NonZeroU64;
use tokio_stream::StreamExt as _;

const BLOCK_BYTES: u64 = 4096;

/// Verify every checksum
///
/// Exit code 5 if a block is not what was committed, and was not adopted, or if a file could not be verified.
#[derive(Debug, clap::Args)]
pub(crate) struct Scrub {
    /// A file or directory; or a server, with / as the path: all of it [default: this machine's server]
    place: Option<String>,
    /// Read at most so many bytes a second
    #[arg(long, value_name = "SIZE")]
    rate: Option<Size>,
    /// Take what is there for committed, wherever it is not what was committed
    ///
    /// For files that another tool changed and meant to: damage cannot be told from that. Each block is named, with both
    /// sums. It needs a path, or --all.
    #[arg(long)]
    adopt: bool,
    /// With --adopt: in every file of the store
    #[arg(long, requires = "adopt", conflicts_with = "place")]
    all: bool,
}

impl Scrub {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let path = match &self.place {
            Some(text) => Some(place::find(common, text)?.path).filter(|path| path != "/"),
            None => None,
        };
        if self.adopt && path.is_none() && !self.all {
            let text = "--adopt without a path would take every file of the store as it is, damaged ones too; \
                        name a file or a directory, or add --all in its place";
            return Err(Failure::new(Exit::Usage, text).into());
        }
        let client = place::connect(common, &place::server(common, self.place.as_deref())?).await?;
        let bytes_per_second = self.rate.and_then(|rate| NonZeroU64::new(rate.0));
        let options = ScrubOptions { adopt: self.adopt, bytes_per_second };
        let mut items = client.scrub(path.as_deref(), options).await?;
        let mut totals = None;
        while let Some(item) = items.next().await {
            match item? {
                proto::scrub_response::Item::File(file) if common.json => show::json_line(&file_json(&file))?,
                proto::scrub_response::Item::File(file) => show_file(&file)?,
                proto::scrub_response::Item::Totals(found) => totals = Some(found),
            }
        }
        let gone = || Failure::new(Exit::Unreachable, "the server went away before the scrub was complete");
        let totals = totals.ok_or_else(gone)?;
        let proto::ScrubTotals { files, blocks, mismatched, failed, adopted, mismatched_adopted } = totals;
        if common.json {
            let value = json!({
                "files": files,
                "blocks": blocks,
                "adopted": adopted,
                "mismatched": mismatched,
                "mismatched_adopted": mismatched_adopted,
                "failed": failed,
            });
            show::json_line(&json!({ "totals": value }))?;
        } else {
            show::line(format_args!(
                "{} in {}: {}",
                show::count(blocks, "block"),
                show::count(files, "file"),
                verdict(adopted > 0 && adopted == blocks, mismatched + mismatched_adopted, failed)
            ))?;
            if mismatched_adopted > 0 {
                show::line(format_args!("{} adopted", show::count(mismatched_adopted, "block")))?;
            }
            if adopted > 0 {
                show::line(format_args!("{} had no checksum and got one", show::count(adopted, "block")))?;
            }
        }
        if mismatched > 0 {
            return Err(Failure::new(
                Exit::Checksum,
                format!("{mismatched} blocks do not match their checksum"),
            )
            .into());
        }
        if failed > 0 {
            return Err(Failure::new(
                Exit::Checksum,
                format!("{failed} files could not be verified to their end"),
            )
            .into());
        }
        Ok(())
    }
}

/// What came of it; `all_new`: no block had a checksum before.
fn verdict(all_new: bool, mismatched: u64, failed: u64) -> String {
    match (mismatched, failed) {
        (0, 0) if all_new => "nothing was compared".to_owned(),
        (0, 0) => "every checksum matches".to_owned(),
        (mismatched, 0) => format!("{mismatched} do not match"),
        (mismatched, failed) => format!("{mismatched} do not match, {failed} files not read to their end"),
    }
}

fn show_file(file: &proto::ScrubFile) -> Outcome {
    for bad in &file.mismatches {
        let start = bad.block * BLOCK_BYTES;
        let committed = bad.committed_crc32c.map_or_else(|| "torn in a crash".to_owned(), crc);
        let found = crc(bad.found_crc32c);
        let (path, end) = (show::name(&file.path), start + BLOCK_BYTES);
        let adopted = if bad.adopted { "; adopted" } else { "" };
        show::line(format_args!(
            "{path}: bytes {start}..{end}: committed {committed}, found {found}{adopted}"
        ))?;
    }
    if let Some(size) = file.adopted_size {
        show::line(format_args!("{}: its size is {size}; adopted", show::name(&file.path)))?;
    }
    if !file.error.is_empty() {
        show::line(format_args!("{}: {}", show::name(&file.path), show::name(&file.error)))?;
    }
    Ok(())
}

fn crc(value: u32) -> String {
    format!("{value:#010x}")
}

fn file_json(file: &proto::ScrubFile) -> Value {
    let mismatch = |bad: &proto::Mismatch| {
        json!({
            "start": bad.block * BLOCK_BYTES,
            "end": (bad.block + 1) * BLOCK_BYTES,
            "committed_crc32c": bad.committed_crc32c.map(crc),
            "found_crc32c": crc(bad.found_crc32c),
            "adopted": bad.adopted,
        })
    };
    let error = Some(&file.error).filter(|error| !error.is_empty());
    json!({
        "path": file.path,
        "blocks": file.blocks,
        "adopted": file.adopted,
        "adopted_size": file.adopted_size,
        "mismatches": file.mismatches.iter().map(mismatch).collect::<Vec<_>>(),
        "error": error,
    })
}
