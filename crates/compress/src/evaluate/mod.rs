//! What a model can do, measured on a suite of texts, questions and the product's own prompts.
//!
//! suite file → [`Suite`] → [`Subject::measure`] item by item (known results come from the [`Cache`]) → [`TaskResult`] → means with
//! bootstrap intervals (`statistics.rs`) → a page (`report.rs`), or a verdict ([`gate`](crate::gate)).

mod cache;
mod report;
mod statistics;
mod subject;
mod suite;

pub use cache::Cache;
pub use report::html;
pub use statistics::{Interval, interval};
pub use subject::{ItemResult, Subject, TaskResult};
pub use suite::{Check, Item, Margins, Suite, Task, TaskKind};
