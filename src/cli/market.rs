//! A market to look at: prices that walk at random, decided by a seed alone. `fanwire pub --simulate` sends its quotes.
//!
//! A symbol's bid moves by a few ticks, a little more often towards where it began than away, so that it wanders for days
//! and stays a price.

use std::fmt::Write;

/// Most symbols of a market.
pub(super) const SYMBOLS_MAX: usize = 10_000;

/// Bounds of a bid, in cents.
const BID_CENTS: std::ops::RangeInclusive<i64> = 100..=1_000_000;

/// All symbols, and the chance that moves them.
#[derive(Clone, Debug)]
pub(super) struct Market {
    symbols: Vec<Symbol>,
    chance: Chance,
}

#[derive(Clone, Debug)]
struct Symbol {
    name: String,
    start_cents: i64,
    bid_cents: i64,
    spread_cents: i64,
    /// Largest step, in cents.
    step_cents: i64,
    quotes: u64,
}

impl Market {
    /// A market of `symbols` symbols, at most [`SYMBOLS_MAX`]. One `seed` always makes the same quotes.
    ///
    /// # Panics
    /// Without any symbol, or with too many.
    pub(super) fn new(symbols: usize, seed: u64) -> Market {
        assert!((1..=SYMBOLS_MAX).contains(&symbols), "a market has 1 to {SYMBOLS_MAX} symbols, not {symbols}");
        let mut chance = Chance(seed);
        let symbols = (0..symbols)
            .map(|i| {
                let start_cents = chance.within(1_000, 60_000);
                Symbol {
                    name: name(i),
                    start_cents,
                    bid_cents: start_cents,
                    spread_cents: chance.within(1, 5),
                    step_cents: (start_cents / 2_000).max(1),
                    quotes: 0,
                }
            })
            .collect();
        Market { symbols, chance }
    }

    /// Moves one symbol and writes its quote behind `json`, published at `unix_us`; its name.
    ///
    /// ```json
    /// {"s":"S017","b":189.12,"a":189.14,"t":1732100000123.456,"n":17}
    /// ```
    ///
    /// Bid, ask, milliseconds since 1970, and the how manieth quote of this symbol it is, from 1.
    pub(super) fn quote(&mut self, unix_us: u64, json: &mut String) -> &str {
        let at = self.chance.within(0, self.symbols.len() as i64 - 1) as usize;
        let symbol = &mut self.symbols[at];
        let step = self.chance.within(-symbol.step_cents, symbol.step_cents);
        // One step in eight goes home.
        let home = (symbol.start_cents - symbol.bid_cents).signum();
        let step = if self.chance.within(0, 7) == 0 { step.abs() * home } else { step };
        symbol.bid_cents = (symbol.bid_cents + step).clamp(*BID_CENTS.start(), *BID_CENTS.end());
        symbol.quotes += 1;
        let (bid, ask) = (symbol.bid_cents, symbol.bid_cents + symbol.spread_cents);
        let written = write!(
            json,
            r#"{{"s":"{}","b":{}.{:02},"a":{}.{:02},"t":{}.{:03},"n":{}}}"#,
            symbol.name,
            bid / 100,
            bid % 100,
            ask / 100,
            ask % 100,
            unix_us / 1000,
            unix_us % 1000,
            symbol.quotes
        );
        written.expect("a string takes all");
        &symbol.name
    }
}

/// `S000`, `S001` …: the demo page knows them by the same rule.
fn name(i: usize) -> String {
    format!("S{i:03}")
}

/// SplitMix64: enough for prices, and the same everywhere.
#[derive(Clone, Debug)]
struct Chance(u64);

impl Chance {
    /// A number from `low` to `high`, both included.
    fn within(&mut self, low: i64, high: i64) -> i64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low + ((z ^ (z >> 31)) % (high - low + 1) as u64) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    const T: u64 = 1_732_100_000_123_456;

    fn quotes(symbols: usize, seed: u64, n: usize) -> Vec<String> {
        let mut market = Market::new(symbols, seed);
        let quote = |_| {
            let mut json = String::new();
            market.quote(T, &mut json);
            json
        };
        (0..n).map(quote).collect()
    }

    #[test]
    fn a_seed_decides_everything() {
        assert_eq!(quotes(500, 7, 2000), quotes(500, 7, 2000));
        assert_ne!(quotes(500, 7, 2000), quotes(500, 8, 2000));
    }

    #[test]
    fn a_quote_is_json_with_its_time_and_its_number() {
        let mut numbers = BTreeMap::new();
        for text in quotes(20, 1, 5000) {
            let quote: serde_json::Value = serde_json::from_str(&text).unwrap();
            let (bid, ask) = (quote["b"].as_f64().unwrap(), quote["a"].as_f64().unwrap());
            assert!(bid < ask && ask - bid < 0.06 && bid >= 1.0, "{text}");
            assert!(text.contains(r#","t":1732100000123.456,"n":"#), "{text}");
            let number = numbers.entry(quote["s"].as_str().unwrap().to_owned()).or_insert(0);
            *number += 1;
            assert_eq!(quote["n"].as_u64(), Some(*number), "{text}");
        }
        assert_eq!(numbers.len(), 20);
    }

    #[test]
    fn prices_move_and_stay_prices() {
        let mut market = Market::new(1, 3);
        let mut bids = BTreeSet::new();
        for _ in 0..200_000 {
            market.quote(T, &mut String::new());
            bids.insert(market.symbols[0].bid_cents);
        }
        let start = market.symbols[0].start_cents;
        assert!(bids.len() > 10, "it moves");
        assert!(
            bids.iter().all(|bid| (start / 2..=start * 2).contains(bid)),
            "{start}: {:?}",
            (bids.first(), bids.last())
        );
    }

    #[test]
    fn every_symbol_has_a_name_of_its_own() {
        let names: BTreeSet<_> = (0..SYMBOLS_MAX).map(name).collect();
        assert_eq!(names.len(), SYMBOLS_MAX);
        assert!(names.contains("S000") && names.contains("S499"));
    }
}
