//! The wish that a probe ends early.

use super::ProbeError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Told from elsewhere; looked at between two tries.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends the probe after the try under way.
    pub fn tell(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was told.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`ProbeError::Stopped`] if it was told.
    pub fn check(&self) -> Result<(), ProbeError> {
        if self.is_told() { Err(ProbeError::Stopped) } else { Ok(()) }
    }
}
