//! A limit on how fast bytes go.

use crate::size::Size;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Spreads bytes over time.
pub(crate) struct Pace {
    bytes_per_second: u64,
    began: Instant,
    granted: AtomicU64,
}

impl Pace {
    pub(crate) fn new(rate: Size) -> Pace {
        Pace { bytes_per_second: rate.0.max(1), began: Instant::now(), granted: AtomicU64::new(0) }
    }

    /// Returns when it is time for the next `bytes`.
    pub(crate) async fn turn(&self, bytes: u64) {
        let before = self.granted.fetch_add(bytes, Ordering::Relaxed);
        let due = Duration::from_secs_f64(before as f64 / self.bytes_per_second as f64);
        tokio::time::sleep_until(self.began + due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pace_spreads_bytes_over_time() {
        let pace = Pace::new(Size(1000));
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            pace.turn(500).await;
        }
        let took = began.elapsed();
        assert!((900..=1100).contains(&took.as_millis()), "{took:?}");
    }
}
