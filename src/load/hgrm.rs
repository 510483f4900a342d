//! Latencies as a file of percentiles, in the form that HdrHistogram's own tools and their plotters read.

use hdrhistogram::Histogram;
use std::fmt::Write;

/// Lines for each halving of the distance to 100 %.
const TICKS_PER_HALF: u32 = 5;

/// `latency_us` as text, in milliseconds.
pub fn text(latency_us: &Histogram<u64>) -> String {
    let mut out = "       Value     Percentile TotalCount 1/(1-Percentile)\n\n".to_owned();
    let ms = |us: f64| us / 1e3;
    let mut count = 0;
    for step in latency_us.iter_quantiles(TICKS_PER_HALF) {
        let (value, quantile) = (ms(step.value_iterated_to() as f64), step.quantile_iterated_to());
        count += step.count_since_last_iteration();
        let line = if quantile < 1.0 {
            writeln!(out, "{value:12.3} {quantile:14.12} {count:10} {:14.2}", 1.0 / (1.0 - quantile))
        } else {
            writeln!(out, "{value:12.3} {quantile:14.12} {count:10}")
        };
        line.expect("a string takes all");
    }
    let (mean, deviation, max) = (ms(latency_us.mean()), ms(latency_us.stdev()), ms(latency_us.max() as f64));
    write!(
        out,
        "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]\n#[Max     = {max:12.3}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]\n",
        latency_us.len(),
        latency_us.buckets(),
        2048
    )
    .expect("a string takes all");
    out
}

#[cfg(test)]
mod tests {
    use super::super::tally::histogram;
    use super::*;

    #[test]
    fn the_columns_rise_and_end_with_all_that_was_counted() {
        let mut latency = histogram();
        (1..=10_000).for_each(|us| latency.saturating_record(us));
        let text = text(&latency);
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|n| n.parse().unwrap()).collect())
            .collect();
        assert!(rows.len() > 20, "{text}");
        assert!(rows.windows(2).all(|two| two[0][..3].iter().zip(&two[1]).all(|(a, b)| a <= b)), "{text}");
        let last = rows.last().unwrap();
        assert!((last[0] - 10.0).abs() < 0.02 && (last[1], last[2]) == (1.0, 10_000.0), "{last:?}");
        assert!(text.contains("#[Max     =       10.0") && text.contains("Total count    =        10000]"), "{text}");
        assert_eq!(super::text(&histogram()).lines().filter(|line| line.starts_with('#')).count(), 3);
    }
}
