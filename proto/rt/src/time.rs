//! Time as tasks see it: tokio's, or the simulator's.

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;

/// A point in time, for deadlines and pauses. Decisions about leases rest on `catena_proto::clock::Clock`, not on this.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Instant(tokio::time::Instant);

impl Instant {
    /// Now.
    pub fn now() -> Instant {
        #[cfg(feature = "sim")]
        if let Some(now) = crate::sim::now() {
            return Instant(tokio::time::Instant::from_std(now));
        }
        Instant(tokio::time::Instant::now())
    }

    /// Time since then; zero if it is still to come.
    pub fn elapsed(&self) -> Duration {
        Instant::now().saturating_duration_since(*self)
    }

    /// Time from `earlier` to this; zero if `earlier` is later.
    pub fn duration_since(&self, earlier: Instant) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }

    /// Time from `earlier` to this; zero if `earlier` is later.
    pub fn saturating_duration_since(&self, earlier: Instant) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }

    /// Time from `earlier` to this; `None` if `earlier` is later.
    pub fn checked_duration_since(&self, earlier: Instant) -> Option<Duration> {
        self.0.checked_duration_since(earlier.0)
    }

    /// Later by `by`, if that can be said.
    pub fn checked_add(&self, by: Duration) -> Option<Instant> {
        self.0.checked_add(by).map(Instant)
    }

    /// Earlier by `by`, if that can be said.
    pub fn checked_sub(&self, by: Duration) -> Option<Instant> {
        self.0.checked_sub(by).map(Instant)
    }

    /// The system's form.
    pub fn into_std(self) -> std::time::Instant {
        self.0.into_std()
    }
}

impl From<tokio::time::Instant> for Instant {
    fn from(instant: tokio::time::Instant) -> Instant {
        Instant(instant)
    }
}

impl From<Instant> for tokio::time::Instant {
    fn from(instant: Instant) -> tokio::time::Instant {
        instant.0
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, by: Duration) -> Instant {
        Instant(self.0 + by)
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, by: Duration) {
        self.0 += by;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, by: Duration) -> Instant {
        Instant(self.0 - by)
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, by: Duration) {
        self.0 -= by;
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Instant) -> Duration {
        self.duration_since(earlier)
    }
}

pin_project! {
    /// Ends at its deadline.
    #[derive(Debug)]
    pub struct Sleep {
        deadline: Instant,
        #[pin]
        kind: Kind,
    }
}

pin_project! {
    #[project = KindProjected]
    #[derive(Debug)]
    enum Kind {
        Tokio { #[pin] sleep: tokio::time::Sleep },
        Sim { alarm: Alarm },
    }
}

#[cfg(feature = "sim")]
type Alarm = crate::sim::Alarm;
#[cfg(not(feature = "sim"))]
type Alarm = std::convert::Infallible;

impl Sleep {
    /// When it ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.project().kind.project() {
            KindProjected::Tokio { sleep } => sleep.poll(context),
            #[cfg(feature = "sim")]
            KindProjected::Sim { alarm } => alarm.poll(context),
            #[cfg(not(feature = "sim"))]
            KindProjected::Sim { alarm } => match *alarm {},
        }
    }
}

/// Waits for `duration`.
pub fn sleep(duration: Duration) -> Sleep {
    let now = Instant::now();
    // As tokio does: what cannot be said is as good as never.
    sleep_until(now.checked_add(duration).unwrap_or(now + Duration::from_secs(86400 * 365 * 30)))
}

/// Waits until `deadline`.
pub fn sleep_until(deadline: Instant) -> Sleep {
    #[cfg(feature = "sim")]
    if let Some(alarm) = crate::sim::Alarm::at(deadline.0.into_std()) {
        return Sleep { deadline, kind: Kind::Sim { alarm } };
    }
    Sleep { deadline, kind: Kind::Tokio { sleep: tokio::time::sleep_until(deadline.0) } }
}

/// The time was over first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("deadline has elapsed")
    }
}

impl std::error::Error for Elapsed {}

pin_project! {
    /// A future and a deadline, whichever comes first; the future is asked first.
    #[derive(Debug)]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        #[pin]
        sleep: Sleep,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(context) {
            return Poll::Ready(Ok(output));
        }
        this.sleep.poll(context).map(|()| Err(Elapsed))
    }
}

/// `future`, for at most `duration`.
pub fn timeout<F: IntoFuture>(duration: Duration, future: F) -> Timeout<F::IntoFuture> {
    Timeout { future: future.into_future(), sleep: sleep(duration) }
}

/// `future`, until `deadline`.
pub fn timeout_at<F: IntoFuture>(deadline: Instant, future: F) -> Timeout<F::IntoFuture> {
    Timeout { future: future.into_future(), sleep: sleep_until(deadline) }
}

/// Ticks every `period`, the first time at once. Ticks that were missed are left out.
#[derive(Debug)]
pub struct Interval {
    next: Instant,
    period: Duration,
}

/// See [`Interval`].
///
/// # Panics
/// If `period` is zero.
pub fn interval(period: Duration) -> Interval {
    assert!(!period.is_zero(), "an interval of no time");
    Interval { next: Instant::now(), period }
}

impl Interval {
    /// Waits for the next tick. May be dropped and called again.
    pub async fn tick(&mut self) -> Instant {
        sleep_until(self.next).await;
        let ticked = self.next;
        self.next = (ticked + self.period).max(Instant::now());
        ticked
    }
}
