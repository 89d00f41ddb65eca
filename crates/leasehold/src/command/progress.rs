//! A bar on long work: on standard error, and only if that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;

/// Counts bytes.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Of `total` bytes, if that is known.
    pub(crate) fn new(total: Option<u64>, what: &str) -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress(ProgressBar::hidden());
        }
        let (bar, template) = match total {
            Some(total) => (
                ProgressBar::new(total),
                "{msg} {bar:24} {binary_bytes:>10} of {binary_total_bytes:10} {binary_bytes_per_sec:>12}",
            ),
            None => {
                (ProgressBar::no_length(), "{msg} {spinner} {binary_bytes:>10} {binary_bytes_per_sec:>12}")
            }
        };
        let style = ProgressStyle::with_template(template).expect("the templates are well-formed");
        bar.set_style(style);
        bar.set_message(what.to_owned());
        Progress(bar)
    }

    /// There are so many bytes.
    pub(crate) fn expect(&self, total: u64) {
        self.0.set_length(total);
    }

    /// So many bytes more.
    pub(crate) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Says something above the bar, or just says it.
    pub(crate) fn say(&self, text: &str) {
        self.0.suspend(|| eprintln!("{text}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
