//! The process that tries it. It says what it finds, one JSON document a line, and ends when its standard input does.

use super::What;
use super::compare;
use crate::command::exit::Outcome;
use leasehold_host::probe::{self, Event, Options, Place, Scratch, Stop};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The longest race of a long probe.
pub(super) const LONG_STEP: Duration = Duration::from_secs(120);

/// What `probe` starts; not for people
#[derive(Debug, clap::Args)]
pub(crate) struct Worker {
    #[command(flatten)]
    what: What,
}

impl Worker {
    pub(crate) async fn run(self) -> Outcome {
        let stop = Stop::default();
        watch_life_line(stop.clone());
        let teller = Teller(stop.clone());
        match self.attempt(&stop, &teller).await {
            Ok(()) => teller.tell(&Event::Done),
            Err(message) => teller.tell(&Event::Failed { message }),
        }
        // Whoever started us reads the code out of what we say.
        Ok(())
    }

    async fn attempt(&self, stop: &Stop, teller: &Teller) -> Result<(), String> {
        let place = self.look(teller).await?;
        let scratch = Arc::new(place.scratch().map_err(|error| error.to_string())?);
        teller.tell(&Event::Made { path: scratch.path().to_owned(), mount: false });
        let tried = self.try_all(place, scratch.clone(), stop, teller).await;
        if let Some(scratch) = Arc::into_inner(scratch)
            && let Err(error) = scratch.remove()
        {
            teller.tell(&Event::NotRemoved { message: error.to_string() });
        }
        tried
    }

    async fn look(&self, teller: &Teller) -> Result<Place, String> {
        let directory = self.what.directory.clone();
        let looked = tokio::task::spawn_blocking(move || probe::look(&directory)).await;
        let place = looked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        teller.tell(&Event::Place(place.clone()));
        Ok(place)
    }

    async fn try_all(
        &self,
        place: Place,
        scratch: Arc<Scratch>,
        stop: &Stop,
        teller: &Teller,
    ) -> Result<(), String> {
        let options = if self.what.long { Options::long() } else { Options::short() };
        let options = Options { freeze: self.what.freeze, ..options };
        let tries = options.tries;
        let path = scratch.path().to_owned();
        let (told, telling) = (stop.clone(), teller.clone());
        let run = move || {
            let mut tell = |event| telling.tell(&event);
            probe::run(&place, &scratch, &options, &told, &mut tell).map_err(|error| error.to_string())
        };
        tokio::task::spawn_blocking(run).await.map_err(|error| error.to_string())??;
        if self.what.compare {
            compare_store(&path, tries, stop, teller).await?;
        }
        Ok(())
    }
}

async fn compare_store(path: &Path, tries: u32, stop: &Stop, teller: &Teller) -> Result<(), String> {
    let compared = compare::run(path, tries, stop, &|event| teller.tell(&event)).await;
    compared.map_err(|error| format!("{error:#}"))
}

/// Says what happens, to whoever started us.
#[derive(Clone)]
struct Teller(Stop);

impl Teller {
    fn tell(&self, event: &Event) {
        let line = serde_json::to_string(event).expect("an event is text and numbers");
        if writeln!(io::stdout().lock(), "{line}").is_err() {
            // Nobody listens any more.
            self.0.tell();
        }
    }
}

fn watch_life_line(stop: Stop) {
    std::thread::spawn(move || {
        // Nothing is ever written to it.
        let _ = io::stdin().lock().read(&mut [0]);
        stop.tell();
    });
}
