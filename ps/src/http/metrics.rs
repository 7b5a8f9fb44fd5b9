//! Prometheus.

use axum::{http::header, response::IntoResponse};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::{sync::OnceLock, time::Duration};

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
/// Interval of the recorder's upkeep: it bounds the samples that a histogram keeps.
const UPKEEP: Duration = Duration::from_secs(5);
/// Upper bounds of the request durations, seconds.
const DURATION_BUCKETS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0];

/// Installs the recorder, once for each process; later calls change nothing.
pub fn install() {
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets(&DURATION_BUCKETS)
            .unwrap_or_default();
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // Only another library can have installed one before; then /metrics is empty.
        if let Err(error) = metrics::set_global_recorder(recorder) {
            tracing::warn!(%error, "metrics are not recorded");
        }
        metrics::describe_counter!("alice_ps_http_requests_total", "requests by method, route and status");
        metrics::describe_histogram!("alice_ps_http_seconds", "time to the start of the answer, by route");
        metrics::describe_counter!("alice_ps_refusals_total", "refused requests by code");
        metrics::describe_counter!("alice_ps_submissions_total", "committed submissions");
        metrics::describe_counter!("alice_ps_accepted_total", "accepted submissions");
        metrics::describe_gauge!("alice_ps_best_block", "best block of the chain");
        metrics::describe_gauge!("alice_ps_finalized_block", "finalised block of the chain");
        metrics::describe_gauge!("alice_ps_epoch", "epoch of the best block");
        metrics::describe_gauge!("alice_ps_chain_up", "1 while the chain answers");
        metrics::describe_gauge!(
            "alice_ps_held_out_loss",
            "held-out loss after the last scored round, nats per token"
        );
        metrics::describe_gauge!("alice_ps_scoring_seconds", "duration of the last scoring");
        handle
    });
}

/// Condenses the recorded samples at intervals, for ever: without that, histograms would grow until somebody scrapes.
pub async fn upkeep() {
    loop {
        tokio::time::sleep(UPKEEP).await;
        if let Some(handle) = HANDLE.get() {
            handle.run_upkeep();
        }
    }
}

/// Counts a request.
pub fn observe(method: &str, route: &str, status: u16, elapsed: Duration) {
    let labels = [
        ("method", method.to_owned()),
        ("route", route.to_owned()),
        ("status", status.to_string()),
    ];
    metrics::counter!("alice_ps_http_requests_total", &labels).increment(1);
    metrics::histogram!("alice_ps_http_seconds", "route" => route.to_owned()).record(elapsed.as_secs_f64());
}

/// `GET /metrics`.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn render() -> impl IntoResponse {
    let text = HANDLE.get().map(PrometheusHandle::render).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
