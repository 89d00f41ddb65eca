//! `leasehold check`: which promises does each scheme keep, and how are the others broken?

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::show;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::ProgressBar;
use leasehold_check::Options;
use leasehold_check::report::overview::{self, Detail};
use leasehold_check::report::{Report, html, json, markdown, space};
use leasehold_core::promise::Promise;
use serde_json::Value;
use std::fs;
use std::io::{self, IsTerminal as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Check which promises each design for DMA into files keeps
///
/// Runs the core under each scheme, in every order in which things can happen in a small world. Exit code 0 if every
/// scheme does what its entry declares, 1 if not. docs/check.md explains what is printed.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// The schemes to check; each broken promise is drawn [default: all]
    #[arg(value_name = "SCHEME", value_parser = PossibleValuesParser::new(leasehold_check::names()), hide_possible_values = true)]
    schemes: Vec<String>,
    /// Draw how this promise is broken (P1 to P10), or say why it is not; can be given several times
    #[arg(long = "promise", value_name = "PROMISE", value_parser = promise(), hide_possible_values = true)]
    promises: Vec<Promise>,
    /// Draw how each promise is broken, for all schemes too
    #[arg(long, conflicts_with = "promises")]
    traces: bool,
    /// Write all of it into one self-contained page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Explore larger worlds, which takes longer
    #[arg(long)]
    deep: bool,
    /// Remember whole states, not their fingerprints: more memory, and no state can be taken for another
    #[arg(long)]
    exact: bool,
    /// Have stateright's own search look at the same worlds besides
    #[arg(long)]
    cross_check: bool,
    /// Instead of the schemes, judge every combination of the six decisions that a scheme is made of
    #[arg(
        long,
        conflicts_with_all = ["schemes", "promises", "traces", "html", "cross_check", "explore", "update_docs"]
    )]
    space: bool,
    /// Threads that explore [default: one for each CPU]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Walk through the states of one scheme in a browser instead
    #[arg(
        long,
        value_name = "PORT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "3000",
        requires = "schemes",
        conflicts_with_all = ["promises", "traces", "html", "cross_check", "update_docs"]
    )]
    explore: Option<u16>,
    /// Write the tables into this page, between the two comments that are there for it
    #[arg(long, value_name = "FILE", hide = true, conflicts_with = "schemes")]
    update_docs: Option<PathBuf>,
}

fn promise() -> impl TypedValueParser<Value = Promise> {
    let of = |name: String| Promise::ALL.into_iter().find(|promise| promise.name() == name);
    PossibleValuesParser::new(Promise::ALL.map(Promise::name))
        .map(move |name| of(name.clone()).unwrap_or_else(|| unreachable!("{name} is none of the promises")))
}

impl Check {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let options = self.options();
        if let Some(port) = self.explore {
            return self.explore(options, port).await;
        }
        if io::stderr().is_terminal() {
            eprintln!("checking, on {} ..", show::count(options.threads.get() as u64, "thread"));
        }
        if self.space {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(200));
            let walk = {
                let bar = bar.clone();
                move || leasehold_check::space(&options, &|text| bar.set_message(text))
            };
            let space = tokio::task::spawn_blocking(walk).await?;
            bar.finish_and_clear();
            return print(common, || space::document(&space), || space::text(&space));
        }
        let report = tokio::task::spawn_blocking(move || leasehold_check::check(&options)).await?;
        let text = || overview::text(&report, &self.detail(), show::has_colour());
        print(common, || json::document(&report), text)?;
        if let Some(path) = &self.html {
            write(path, &html::page(&report))?;
        }
        if let Some(path) = &self.update_docs {
            update(path, &report)?;
        }
        outcome(&report)
    }

    fn options(&self) -> Options {
        let Check { deep, exact, cross_check, .. } = *self;
        let options =
            Options { schemes: self.schemes.clone(), deep, exact, cross_check, ..Options::default() };
        Options { threads: self.threads.unwrap_or(options.threads), ..options }
    }

    /// Whoever names a scheme or a promise wants to see how it is broken; of all of them that is too much at once.
    fn detail(&self) -> Detail {
        if !self.promises.is_empty() {
            Detail::Of(self.promises.clone())
        } else if self.traces || !self.schemes.is_empty() {
            Detail::Diagrams
        } else {
            Detail::Sentences
        }
    }

    async fn explore(&self, options: Options, port: u16) -> Outcome {
        let [scheme] = self.schemes.as_slice() else {
            return Err(Failure::new(Exit::Usage, "--explore shows one scheme; name only one").into());
        };
        show::line(format_args!("{scheme} at http://localhost:{port}/; end it with Ctrl-C"))?;
        match tokio::task::spawn_blocking(move || leasehold_check::explore(&options, port)).await? {
            Ok(never) => match never {},
            Err(error) => Err(error.into()),
        }
    }
}

fn print(common: &Common, document: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Outcome {
    if common.json {
        return Ok(show::json_document(&document())?);
    }
    Ok(show::styled(text().trim_end())?)
}

/// As the exit code has it.
fn outcome(report: &Report) -> Outcome {
    let undeclared: Vec<String> =
        report.undeclared().map(|(scheme, promise)| format!("{} {}", scheme.name, promise.promise)).collect();
    if undeclared.is_empty() {
        return Ok(());
    }
    let text = format!("not as declared: {}", undeclared.join(", "));
    Err(Failure::new(Exit::Failed, text).into())
}

fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display())).into()
    })
}

fn update(path: &Path, report: &Report) -> Outcome {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Failed, format!("cannot update {}: {error}", path.display()))
    };
    let page = fs::read_to_string(path).map_err(|error| failed(&error))?;
    let page = markdown::replaced(&page, report).map_err(|error| failed(&error))?;
    write(path, &page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use leasehold_check::report::{Costs, Explored, PromiseReport, SchemeReport, Verdict};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        check: Check,
    }

    fn parse(arguments: &[&str]) -> Result<Check, clap::Error> {
        Line::try_parse_from([&["check"], arguments].concat()).map(|line| line.check)
    }

    fn detail(arguments: &[&str]) -> Detail {
        parse(arguments).unwrap().detail()
    }

    /// Made up: a scheme of one promise, declared to be kept.
    fn report(found: Verdict) -> Report {
        let promise = PromiseReport {
            promise: Promise::P3,
            found,
            declared: Verdict::Kept,
            reason: "because",
            trace: None,
        };
        let scheme = SchemeReport {
            name: "mine".to_owned(),
            idea: "",
            sources: &[],
            promises: vec![promise],
            costs: Costs::default(),
            explored: Explored::default(),
        };
        Report { bounds: String::new(), schemes: vec![scheme] }
    }

    #[test]
    fn diagrams_are_drawn_of_what_is_named_and_of_all_only_if_wanted() {
        assert_eq!(detail(&[]), Detail::Sentences);
        assert_eq!(detail(&["naive"]), Detail::Diagrams);
        assert_eq!(detail(&["--traces"]), Detail::Diagrams);
        let both = ["naive", "--promise", "P3", "--promise", "P10"];
        assert_eq!(detail(&both), Detail::Of(vec![Promise::P3, Promise::P10]));
    }

    #[test]
    fn it_fails_only_if_something_is_not_as_declared_and_names_that() {
        outcome(&report(Verdict::Kept)).unwrap();
        for found in [Verdict::Broken, Verdict::Vacuous] {
            let error = outcome(&report(found)).unwrap_err();
            assert_eq!(crate::command::exit::code(&error), Exit::Failed);
            assert_eq!(error.to_string(), "not as declared: mine P3");
        }
    }

    #[test]
    fn an_explorer_takes_no_scheme_for_its_port() {
        let check = parse(&["--explore", "naive"]).unwrap();
        assert_eq!(check.explore, Some(3000));
        assert_eq!(check.schemes, ["naive"]);
        assert_eq!(parse(&["--explore=80", "naive"]).unwrap().explore, Some(80));
        assert!(parse(&["--explore"]).is_err(), "of which scheme?");
    }

    #[test]
    fn a_page_gets_its_tables_and_one_without_a_place_for_them_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("schemes.md");
        fs::write(&path, "# Schemes\n").unwrap();
        let error = update(&path, &report(Verdict::Kept)).unwrap_err().to_string();
        assert!(error.contains("schemes.md: no place for the tables"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "# Schemes\n");
        fs::write(&path, format!("{}\n{}\n", markdown::BEGIN, markdown::END)).unwrap();
        update(&path, &report(Verdict::Kept)).unwrap();
        let page = fs::read_to_string(&path).unwrap();
        assert_eq!(markdown::is_stale(&page, &report(Verdict::Kept)), Ok(false));
        assert_eq!(markdown::is_stale(&page, &report(Verdict::Broken)), Ok(true));
    }
}
