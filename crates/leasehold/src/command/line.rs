//! A session that comes back: when the server, or the way to it, is lost, it connects anew and opens a new one.
//!
//! What the old session had not committed is gone, and what it had committed may be, unless it was durable: a line only
//! brings back the means. Whoever uses it does its own part again, and can tell by [`Link::number`] under which session a
//! part was done.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, code, text};
use crate::command::place;
use crate::command::progress::Progress;
use crate::command::put::wait_time;
use crate::command::show;
use anyhow::Context as _;
use leasehold_client::{Client, Server, Session};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Whether to come back.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Reconnect {
    /// How long to try to come back when the server is lost; 0s: not at all
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = wait_time)]
    reconnect: Duration,
}

/// See the module.
pub(crate) struct Line {
    patience: Duration,
    now: Mutex<Arc<Link>>,
    /// Taken by whoever brings the session back; the others wait for it.
    mending: tokio::sync::Mutex<Mending>,
    /// How often something was done that need not be done again.
    steps: AtomicU64,
    progress: Arc<Progress>,
}

/// A session, while it lasts.
pub(crate) struct Link {
    pub(crate) session: Session,
    /// The first has 0.
    pub(crate) number: u64,
}

#[derive(Default)]
struct Mending {
    /// When to give up, and the steps that were done when this was decided: a server that takes sessions and then drops
    /// them is as good as lost.
    give_up: Option<(Instant, u64)>,
}

impl Link {
    pub(crate) fn client(&self) -> &Client {
        self.session.client()
    }

    /// Whether an error means that the server, the way to it, or the session is gone.
    pub(crate) fn is_lost(&self, error: &anyhow::Error) -> bool {
        self.session.ended().is_some() || code(error) == Exit::Unreachable
    }
}

impl Line {
    /// Connects, and does not try again: whoever is not there from the start may have another name.
    pub(crate) async fn open(
        common: &Common,
        server: &Server,
        reconnect: Reconnect,
        progress: Arc<Progress>,
    ) -> anyhow::Result<Line> {
        let session = session(&place::connect(common, server).await?).await?;
        Ok(Line {
            patience: reconnect.reconnect,
            now: Mutex::new(Arc::new(Link { session, number: 0 })),
            mending: tokio::sync::Mutex::default(),
            steps: AtomicU64::new(0),
            progress,
        })
    }

    /// The session that there is now.
    pub(crate) fn now(&self) -> Arc<Link> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something was done that need not be done again.
    pub(crate) fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Does something, again and again as long as the line is lost meanwhile and can be brought back.
    pub(crate) async fn hold<T>(
        &self,
        mut attempt: impl AsyncFnMut(&Link) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        loop {
            let link = self.now();
            match attempt(&link).await {
                Err(error) if link.is_lost(&error) => self.again(&link, error).await?,
                done => return done,
            }
        }
    }

    /// Brings the session back, unless somebody else has since `lost` was.
    async fn again(&self, lost: &Link, why: anyhow::Error) -> anyhow::Result<()> {
        let mut mending = self.mending.lock().await;
        if self.now().number != lost.number {
            return Ok(());
        }
        // Whatever it broke, what ails is the connection.
        let ended = lost.session.ended().unwrap_or_else(|| text(&why));
        let failed = |text: String| Err(Failure::new(Exit::Unreachable, text).into());
        if self.patience.is_zero() {
            return failed(format!("connection lost: {ended}"));
        }
        let steps = self.steps.load(Ordering::Relaxed);
        let patience = show::duration(self.patience);
        let give_up = match mending.give_up {
            Some((at, then)) if then == steps => at,
            _ => {
                self.progress.say(&format!("connection lost ({ended}); coming back, for up to {patience}"));
                Instant::now() + self.patience
            }
        };
        mending.give_up = Some((give_up, steps));
        let mut pause = PAUSE_MIN;
        loop {
            let next = Instant::now() + pause;
            if next > give_up {
                return failed(format!("connection lost ({ended}), and not to be had again for {patience}"));
            }
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(PAUSE_MAX);
            let again = async { session(&lost.client().connect_again().await?).await };
            match again.await {
                Ok(session) => {
                    let link = Arc::new(Link { session, number: lost.number + 1 });
                    *self.now.lock().unwrap_or_else(PoisonError::into_inner) = link;
                    self.progress.say("connected again; going on");
                    return Ok(());
                }
                Err(error) => tracing::debug!(%error, "not yet back"),
            }
        }
    }

    /// Ends the session, if nobody uses it any more.
    pub(crate) async fn close(self) {
        let link = self.now.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = Arc::into_inner(link) {
            link.session.close().await;
        }
    }
}

async fn session(client: &Client) -> anyhow::Result<Session> {
    Session::open(client).await.with_context(|| format!("no session on {}", client.server()))
}
