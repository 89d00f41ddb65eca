//! What the demo tells.

use crate::command::exit::Outcome;
use crate::command::show;

/// A new step, in one line.
pub(super) fn step(number: u8, text: &str) -> Outcome {
    show::line("")?;
    Ok(show::line(format_args!("{number}. {text}"))?)
}

/// What came of it.
pub(super) fn say(text: &str) -> Outcome {
    Ok(show::line(format_args!("   {text}"))?)
}

/// What a process says, behind its name.
pub(super) fn quote(who: &str, text: &str) -> Outcome {
    if who.is_empty() {
        return say(text);
    }
    Ok(show::line(format_args!("   {who} | {text}"))?)
}
