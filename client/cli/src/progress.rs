//! Progress on stderr, for people: bars for bytes, a line for steps. Where stderr is no terminal nothing is drawn.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Bytes done of a total, with rate and time left.
pub fn bytes(total: u64, label: &str) -> ProgressBar {
    styled(
        ProgressBar::with_draw_target(Some(total), target()),
        "{prefix:10} {bar:32} {binary_bytes:>10} of {binary_total_bytes}  {binary_bytes_per_sec:>12}  {eta:>4} left",
        label,
    )
}

/// Things done of a total.
pub fn things(total: u64, label: &str) -> ProgressBar {
    styled(
        ProgressBar::with_draw_target(Some(total), target()),
        "{prefix:10} {bar:32} {human_pos:>10} of {human_len}  {per_sec:>12}",
        label,
    )
}

/// Time passed of a time limit.
pub fn seconds(total: Duration, label: &str) -> ProgressBar {
    styled(
        ProgressBar::with_draw_target(Some(total.as_millis() as u64), target()),
        "{prefix:10} {bar:32} {elapsed:>4}  {msg}",
        label,
    )
}

/// Bytes done where nobody knows the total (stdin).
pub fn stream(label: &str) -> ProgressBar {
    let bar = styled(
        ProgressBar::with_draw_target(None, target()),
        "{prefix:10} {spinner} {binary_bytes:>10}  {binary_bytes_per_sec:>12}",
        label,
    );
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A step that takes a while.
pub fn step(message: impl Into<String>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("a valid template"));
    bar.set_message(message.into());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr_with_hz(10)
    } else {
        ProgressDrawTarget::hidden()
    }
}

fn styled(bar: ProgressBar, template: &str, label: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a valid template");
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(label.to_owned());
    bar
}
