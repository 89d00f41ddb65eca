//! `leasehold audit`: is this host safe for DMA into files?

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome, Told};
use crate::command::show;
use leasehold_host::audit::look::{self, Helper};
use leasehold_host::audit::{
    self, Baseline, Evidence, Host, Options, Report, catalogue, markdown, sarif, text,
};
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

/// What the helper process is called by.
const LOOK: &str = "audit-look";

/// Judge whether this host is safe for DMA into files
///
/// Reads what the kernel, the filesystems, services and processes are and do, changes nothing, and needs neither a
/// server nor privileges; as root it sees more. Exit code 0 if there is no finding, 1 if there are some, 2 if it could
/// not look. docs/audit.md lists the findings.
#[derive(Debug, clap::Args)]
pub(crate) struct Audit {
    /// Look at the filesystems that these are on [default: all that hold files that stay]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print SARIF 2.1.0, for tools that gather such results
    #[arg(long, conflicts_with = "json")]
    sarif: bool,
    /// Accept the findings in this file
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Accept all findings that there are, and write them into this file
    #[arg(long, value_name = "FILE")]
    write_baseline: Option<PathBuf>,
    /// What `leasehold probe --json` printed, which counts for more than the kernel's version
    #[arg(long, value_name = "FILE")]
    evidence: Option<PathBuf>,
    /// Explain a finding (`list`: all of them in a line each), and look at nothing
    #[arg(long, value_name = "ID", conflicts_with_all = ["paths", "sarif", "baseline", "write_baseline", "evidence"])]
    explain: Option<String>,
    /// Look at a copy of a host's files, and of what its system calls said
    #[arg(long, value_name = "DIR", hide = true)]
    root: Option<PathBuf>,
    /// Write the catalogue into this page, between the two comments that are there for it
    #[arg(long, value_name = "FILE", hide = true)]
    update_docs: Option<PathBuf>,
}

/// Touches paths that may never answer, in a process of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Look {
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

impl Look {
    /// Without threads that would be waited for.
    pub(crate) async fn run(self) -> Outcome {
        Ok(look::touch(self.paths)?)
    }
}

impl Audit {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        if let Some(id) = &self.explain {
            return explain(id);
        }
        if let Some(page) = &self.update_docs {
            return update(page);
        }
        let baseline = self.baseline.as_deref().map(Baseline::read).transpose().map_err(could_not)?;
        let evidence = self.evidence.as_deref().map(Evidence::read).transpose().map_err(could_not)?;
        let host = match &self.root {
            Some(root) => Host::copied(root).map_err(could_not)?,
            None => Host::live(helper()?),
        };
        let options = Options { paths: self.paths.clone(), evidence };
        let looked = tokio::task::spawn_blocking(move || audit::audit(host, &options)).await?;
        let mut report = looked.map_err(could_not)?;
        if let Some(baseline) = &baseline {
            report.accept(baseline);
        }
        if let Some(path) = &self.write_baseline {
            let older = Baseline::read(path).ok();
            let written = Baseline::of(&report.findings, baseline.as_ref().or(older.as_ref()));
            write(path, &written.text())?;
            report.accept(&written);
        }
        self.print(common, &report)?;
        match report.is_clean() {
            true => Ok(()),
            false => Err(Told(Exit::Failed).into()),
        }
    }

    fn print(&self, common: &Common, report: &Report) -> Outcome {
        if self.sarif {
            return Ok(show::json_document(&sarif::log(report))?);
        }
        if common.json {
            return Ok(show::json_document(&report.document())?);
        }
        Ok(show::styled(text::text(report, show::has_colour()).trim_end())?)
    }
}

/// This program, again.
fn helper() -> anyhow::Result<Helper> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot find this program's file: {error}")))?;
    Ok(Helper::new(program, [OsString::from(LOOK)]))
}

fn explain(id: &str) -> Outcome {
    if id == "list" {
        return Ok(show::styled(text::listed(show::has_colour()).trim_end())?);
    }
    if let Some(entry) = catalogue::entry(id) {
        return Ok(show::styled(text::explained(entry, show::has_colour()).trim_end())?);
    }
    Err(could_not(format!("there is no finding {id:?}; `leasehold audit --explain list` has them all"))
        .into())
}

fn could_not(error: impl Display) -> Failure {
    Failure::new(Exit::Usage, error.to_string())
}

fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(|error| {
        Failure::new(Exit::Usage, format!("cannot write {}: {error}", path.display())).into()
    })
}

fn update(path: &Path) -> Outcome {
    let failed = |error: &dyn Display| could_not(format!("cannot update {}: {error}", path.display()));
    let page = fs::read_to_string(path).map_err(|error| failed(&error))?;
    let page = markdown::replaced(&page).map_err(|error| failed(&error))?;
    write(path, &page)
}
