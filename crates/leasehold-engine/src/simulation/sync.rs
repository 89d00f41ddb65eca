//! `sync` for tests: the standard library's locks, channels and threads, or, in a simulation, what the scheduler makes of them.

pub(crate) mod mpsc;

use super::scheduler::{Key, Scheduler, TaskId, Wake, current};
use std::any::Any;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::{Pin, pin};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LockResult, PoisonError, TryLockError, TryLockResult};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

/// The time: that of the simulation.
pub(crate) fn now() -> Instant {
    current().map_or_else(Instant::now, |scheduler| scheduler.now())
}

/// What people take for the time: that of the simulation, which may jump.
pub(crate) fn wall() -> SystemTime {
    current().map_or_else(SystemTime::now, |scheduler| scheduler.wall())
}

/// A number that only the seed decides.
pub(crate) fn random() -> io::Result<u32> {
    match current() {
        Some(scheduler) => Ok(scheduler.random(|random| (random.next() >> 32) as u32)),
        None => Ok(getrandom::u32()?),
    }
}

#[track_caller]
pub(crate) fn sleep(duration: Duration) {
    match current() {
        Some(scheduler) => scheduler.sleep(duration),
        None => std::thread::sleep(duration),
    }
}

/// Every how many locks and messages others go first.
const YIELD_ONCE_IN: u64 = 6;

fn may_yield() {
    if let Some(scheduler) = current() {
        scheduler.may_yield(YIELD_ONCE_IN);
    }
}

#[derive(Default)]
pub(crate) struct Mutex<T: ?Sized>(std::sync::Mutex<T>);

pub(crate) struct MutexGuard<'a, T: ?Sized> {
    /// `None` once it is given back.
    guard: Option<std::sync::MutexGuard<'a, T>>,
    mutex: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(std::sync::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    fn key(&self) -> Key {
        ptr::from_ref(&self.0).addr()
    }

    #[track_caller]
    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        may_yield();
        self.lock_at_once()
    }

    pub(crate) fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        may_yield();
        match self.0.try_lock() {
            Ok(guard) => Ok(MutexGuard { guard: Some(guard), mutex: self }),
            Err(TryLockError::WouldBlock) => Err(TryLockError::WouldBlock),
            Err(TryLockError::Poisoned(error)) => {
                let guard = MutexGuard { guard: Some(error.into_inner()), mutex: self };
                Err(TryLockError::Poisoned(PoisonError::new(guard)))
            }
        }
    }

    #[track_caller]
    fn lock_at_once(&self) -> LockResult<MutexGuard<'_, T>> {
        let guard = |guard| MutexGuard { guard: Some(guard), mutex: self };
        let poisoned = |error: PoisonError<_>| PoisonError::new(guard(error.into_inner()));
        let Some(scheduler) = current() else { return self.0.lock().map(guard).map_err(poisoned) };
        loop {
            match self.0.try_lock() {
                Ok(locked) => return Ok(guard(locked)),
                Err(TryLockError::Poisoned(error)) => return Err(poisoned(error)),
                Err(TryLockError::WouldBlock) => drop(scheduler.park(self.key(), None)),
            }
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().expect("given back only on drop")
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().expect("given back only on drop")
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.guard = None;
        if let Some(scheduler) = current() {
            scheduler.wake_all(self.mutex.key());
        }
    }
}

#[derive(Default)]
pub(crate) struct Condvar(std::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Condvar {
        Condvar::default()
    }

    fn key(&self) -> Key {
        ptr::from_ref(&self.0).addr()
    }

    #[track_caller]
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.wait_until(guard, None).0
    }

    /// And whether it was notified.
    #[track_caller]
    fn wait_until<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        until: Option<Instant>,
    ) -> (LockResult<MutexGuard<'a, T>>, bool) {
        let mutex = guard.mutex;
        if let Some(scheduler) = current() {
            drop(guard);
            let wake = scheduler.park(self.key(), until);
            return (mutex.lock_at_once(), wake == Wake::Woken);
        }
        let real = guard.guard.take().expect("given back only on drop");
        let again = |guard| MutexGuard { guard: Some(guard), mutex };
        match until {
            None => {
                let locked = self.0.wait(real);
                (locked.map(again).map_err(|error| PoisonError::new(again(error.into_inner()))), true)
            }
            Some(until) => {
                let locked = self.0.wait_timeout(real, until.saturating_duration_since(Instant::now()));
                let (locked, timeout) = locked.unwrap_or_else(PoisonError::into_inner);
                (Ok(again(locked)), !timeout.timed_out())
            }
        }
    }

    /// And whether it was notified.
    #[track_caller]
    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        patience: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        let (locked, notified) = self.wait_until(guard, Some(now() + patience));
        match locked {
            Ok(guard) => Ok((guard, notified)),
            Err(error) => Err(PoisonError::new((error.into_inner(), notified))),
        }
    }

    #[track_caller]
    pub(crate) fn wait_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        while condition(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// [`Condvar::wait_while`], at most until some time. Whether the condition is over.
    #[track_caller]
    pub(crate) fn wait_while_until<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        until: Instant,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> (MutexGuard<'a, T>, bool) {
        while condition(&mut guard) {
            let (locked, notified) = self.wait_until(guard, Some(until));
            guard = locked.unwrap_or_else(PoisonError::into_inner);
            if !notified && now() >= until {
                let over = !condition(&mut guard);
                return (guard, over);
            }
        }
        (guard, true)
    }

    pub(crate) fn notify_one(&self) {
        match current() {
            Some(scheduler) => scheduler.wake_one(self.key()),
            None => self.0.notify_one(),
        }
    }

    pub(crate) fn notify_all(&self) {
        match current() {
            Some(scheduler) => scheduler.wake_all(self.key()),
            None => self.0.notify_all(),
        }
    }
}

pub(crate) enum JoinHandle<T> {
    Real(std::thread::JoinHandle<T>),
    Task { task: TaskId, result: Arc<std::sync::Mutex<Option<T>>> },
}

pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let Some(scheduler) = current() else {
        return std::thread::Builder::new().name(name.into()).spawn(work).map(JoinHandle::Real);
    };
    let result = Arc::<std::sync::Mutex<Option<T>>>::default();
    let put = Arc::clone(&result);
    let work = move || *put.lock().expect("locked for a moment") = Some(work());
    Ok(JoinHandle::Task { task: scheduler.spawn(name, Box::new(work)), result })
}

#[track_caller]
pub(crate) fn join<T>(thread: JoinHandle<T>) -> Option<T> {
    match (thread, current()) {
        (JoinHandle::Real(thread), _) if thread.thread().id() == std::thread::current().id() => None,
        (JoinHandle::Real(thread), _) => thread.join().ok(),
        (JoinHandle::Task { task, result }, Some(scheduler)) => {
            if task == scheduler.running() {
                return None;
            }
            while !scheduler.is_gone(task) {
                scheduler.park(Scheduler::end_of(task), None);
            }
            result.lock().expect("locked for a moment").take()
        }
        (JoinHandle::Task { .. }, None) => panic!("the simulation is over"),
    }
}

/// The simulation reports it, and ends.
pub(crate) fn end_process(panic: Box<dyn Any + Send>) -> ! {
    match current() {
        Some(_) => std::panic::resume_unwind(panic),
        None => std::process::abort(),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    if crate::sync::is_allowed_to_block() {
        return call();
    }
    if current().is_none() {
        return tokio::task::spawn_blocking(call)
            .await
            .expect("a blocking call neither panics nor is aborted");
    }
    on_a_task(call).await
}

async fn on_a_task<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, result) = tokio::sync::oneshot::channel();
    let called = spawn("blocking", move || drop(send.send(call())));
    called.expect("tasks can be started");
    result.await.expect("a blocking call does not panic")
}

pub(crate) async fn detached<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    match current() {
        Some(_) => on_a_task(move || block_on(future)).await,
        None => tokio::spawn(future).await.expect("what goes on neither panics nor is aborted"),
    }
}

pub(crate) async fn timeout<T>(patience: Duration, future: impl Future<Output = T>) -> Option<T> {
    if current().is_none() {
        return tokio::time::timeout(patience, future).await.ok();
    }
    let (send, mut over) = tokio::sync::oneshot::channel();
    let timer = spawn("timer", move || {
        sleep(patience);
        let _ = send.send(());
    });
    timer.expect("tasks can be started");
    let mut future = pin!(future);
    std::future::poll_fn(move |context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Pin::new(&mut over).poll(context).map(|_| None),
    })
    .await
}

/// Runs the future on this task.
#[track_caller]
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Bell(AtomicBool);

    impl Bell {
        fn key(&self) -> Key {
            ptr::from_ref(&self.0).addr()
        }
    }

    impl std::task::Wake for Bell {
        fn wake(self: Arc<Bell>) {
            self.0.store(true, Ordering::Relaxed);
            // A bell that outlives the simulation rings for nobody.
            if let Some(scheduler) = current() {
                scheduler.wake_all(self.key());
            }
        }
    }

    let scheduler = current().expect("a simulation");
    let bell = Arc::new(Bell(AtomicBool::new(false)));
    let waker = Arc::clone(&bell).into();
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        while !bell.0.swap(false, Ordering::Relaxed) {
            scheduler.park(bell.key(), None);
        }
    }
}
