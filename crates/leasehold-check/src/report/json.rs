//! The report for programs. `docs/check.md` documents the schema.

use super::{Report, Source, Verdict, word};
use leasehold_core::promise::Promise;
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Rises when a program that reads the document must be changed; fields may be added without that.
pub const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    as_declared: bool,
    #[serde(flatten)]
    report: &'a Report,
}

/// All that the report has.
///
/// # Panics
/// Never: nothing in a report cannot be written as JSON.
#[must_use]
pub fn document(report: &Report) -> Value {
    let document = Document { schema: SCHEMA, as_declared: report.is_as_declared(), report };
    serde_json::to_value(document).expect("a report can be written as JSON")
}

pub(super) fn name_of<S: Serializer>(promise: &Promise, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(promise.name())
}

pub(super) fn word_of<S: Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(word(*verdict))
}

pub(super) fn sources<S: Serializer>(sources: &[Source], serializer: S) -> Result<S::Ok, S::Error> {
    let source = |Source { author, date }: &Source| BTreeMap::from([("author", *author), ("date", *date)]);
    serializer.collect_seq(sources.iter().map(source))
}

pub(super) fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_micros() as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::costs::{Refusal, Wait, Waiter, Work};
    use crate::report::{Costs, Explored, PromiseReport, SchemeReport, Step, Trace, sample, space};
    use std::collections::BTreeSet;

    #[test]
    fn nothing_is_lost_between_a_report_and_its_json() {
        let report = sample::report();
        let text = document(&report).to_string();
        assert_eq!(read(&serde_json::from_str(&text).unwrap()), report);
    }

    #[test]
    fn it_says_at_once_whether_all_is_as_declared() {
        let mut report = sample::report();
        assert_eq!(document(&report)["as_declared"], false);
        report.schemes[1].promises[4].declared = Verdict::Broken;
        assert_eq!(document(&report)["as_declared"], true);
    }

    #[test]
    fn every_field_is_documented() {
        let mut names = BTreeSet::new();
        collect(&document(&sample::report()), &mut names);
        collect(&space::document(&sample::space()), &mut names);
        let page = include_str!("../../../../docs/check.md");
        let missing: Vec<_> = names.iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "not in docs/check.md: {missing:?}");
    }

    fn collect(value: &Value, names: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    names.insert(name.clone());
                    collect(value, names);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
            _ => {}
        }
    }

    /// The report that a document was made of.
    fn read(value: &Value) -> Report {
        assert_eq!(value["schema"], SCHEMA);
        Report { bounds: text(&value["bounds"]).to_owned(), schemes: all(&value["schemes"], scheme) }
    }

    fn scheme(value: &Value) -> SchemeReport {
        SchemeReport {
            name: text(&value["name"]).to_owned(),
            idea: text(&value["idea"]),
            sources: all(&value["sources"], source).leak(),
            promises: all(&value["promises"], promise),
            costs: costs(&value["costs"]),
            explored: explored(&value["explored"]),
        }
    }

    fn source(value: &Value) -> Source {
        Source { author: text(&value["author"]), date: text(&value["date"]) }
    }

    fn promise(value: &Value) -> PromiseReport {
        let name = text(&value["promise"]);
        PromiseReport {
            promise: Promise::ALL.into_iter().find(|promise| promise.name() == name).unwrap(),
            found: verdict(&value["found"]),
            declared: verdict(&value["declared"]),
            reason: text(&value["reason"]),
            trace: Some(&value["trace"]).filter(|trace| !trace.is_null()).map(trace),
        }
    }

    fn verdict(value: &Value) -> Verdict {
        let verdicts = [Verdict::Kept, Verdict::Broken, Verdict::Vacuous];
        verdicts.into_iter().find(|verdict| value == word(*verdict)).unwrap()
    }

    fn trace(value: &Value) -> Trace {
        let step = |step: &Value| Step {
            from: number(&step["from"]) as usize,
            to: number(&step["to"]) as usize,
            what: text(&step["what"]).to_owned(),
        };
        Trace {
            world: text(&value["world"]).to_owned(),
            lanes: all(&value["lanes"], text),
            steps: all(&value["steps"], step),
            broken: text(&value["broken"]).to_owned(),
        }
    }

    fn costs(value: &Value) -> Costs {
        Costs {
            copies: value["copies"].as_f64().unwrap(),
            refaults: value["refaults"].as_f64().unwrap(),
            waits: all(&value["waits"], wait),
            refuses: all(&value["refuses"], refusal),
            kills: value["kills"].as_bool().unwrap(),
            half_writes: value["half_writes"].as_bool().unwrap(),
            one_commit: value["one_commit"].as_bool().unwrap(),
        }
    }

    /// One of those that the sample has.
    fn wait(phrase: &Value) -> Wait {
        let waits = [(Waiter::Truncate, false), (Waiter::Truncate, true), (Waiter::LocalRead, true)];
        let mut waits = waits.map(|(what, for_ever)| Wait { what, for_ever }).into_iter();
        waits.find(|wait| wait.to_string() == text(phrase)).unwrap()
    }

    fn refusal(phrase: &Value) -> Refusal {
        let refusals = [(Work::WritePageCache, true), (Work::ChangeLayout, false)];
        let mut refusals = refusals.map(|(what, unless_faults)| Refusal { what, unless_faults }).into_iter();
        refusals.find(|refusal| refusal.to_string() == text(phrase)).unwrap()
    }

    fn explored(value: &Value) -> Explored {
        Explored {
            worlds: number(&value["worlds"]) as usize,
            states: number(&value["states"]),
            transitions: number(&value["transitions"]),
            depth: number(&value["depth"]) as u32,
            cut_off: Some(&value["cut_off"]).filter(|bound| !bound.is_null()).map(text),
            visited_bytes: number(&value["visited_bytes"]),
            frontier_bytes: number(&value["frontier_bytes"]),
            collision: value["collision"].as_f64().unwrap(),
            elapsed: Duration::from_secs_f64(value["elapsed_ms"].as_f64().unwrap() / 1000.0),
        }
    }

    fn all<T>(value: &Value, read: impl Fn(&Value) -> T) -> Vec<T> {
        value.as_array().unwrap().iter().map(read).collect()
    }

    fn number(value: &Value) -> u64 {
        value.as_u64().unwrap()
    }

    /// For ever, as reports have it; there are few in a test.
    fn text(value: &Value) -> &'static str {
        value.as_str().unwrap().to_owned().leak()
    }
}
