use super::*;

/// Worked by hand: the chosen answer gained 2 nats on the reference, the rejected one lost 1, so the margin is 0.1 * 3.
#[test]
fn a_pair_has_the_loss_and_the_slope_that_the_formula_gives() {
    let near = |got: f64, want: f64| assert!((got - want).abs() < 5e-7, "{got} {want}");
    let (model, reference) = ([-10.0, -20.0], [-12.0, -19.0]);
    // ln(1 + e^-0.3) = 0.554355; sigmoid(-0.3) = 0.425557.
    let got = Dpo { beta: 0.1, label_smoothing: 0.0 }.pair(model, reference);
    near(got.margin, 0.3);
    near(got.loss, 0.554_355_2);
    near(got.slope, -0.042_555_7);
    // 0.9 * 0.554355 + 0.1 * 0.854355; 0.1 * (0.1 * 0.574443 - 0.9 * 0.425557).
    let got = Dpo { beta: 0.1, label_smoothing: 0.1 }.pair(model, reference);
    near(got.loss, 0.584_355_2);
    near(got.slope, -0.032_555_7);
    // At the start both are the reference's.
    let got = Dpo { beta: 0.5, label_smoothing: 0.0 }.pair(reference, reference);
    near(got.loss, std::f64::consts::LN_2);
    near(got.slope, -0.25);
}

#[test]
fn the_slope_is_that_of_the_loss_also_far_away() {
    for smoothing in [0.0, 0.2] {
        let dpo = Dpo { beta: 0.3, label_smoothing: smoothing };
        let reference = [-30.0, -40.0];
        for chosen in [-4000.0, -60.0, -31.0, -29.0, -3.0, 2000.0] {
            let at = |h: f64| dpo.pair([chosen + h, -41.0], reference).loss;
            let (got, h) = (dpo.pair([chosen, -41.0], reference), 1e-4);
            let slope = (at(h) - at(-h)) / (2.0 * h);
            assert!(got.loss.is_finite() && (slope - got.slope).abs() < 1e-6, "{chosen}: {got:?} {slope}");
            // The other answer pulls the other way.
            let by_other = (dpo.pair([chosen, -41.0 + h], reference).loss
                - dpo.pair([chosen, -41.0 - h], reference).loss)
                / (2.0 * h);
            assert!((by_other + got.slope).abs() < 1e-6, "{chosen}: {got:?} {by_other}");
        }
    }
}
