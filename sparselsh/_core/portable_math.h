/* exp, log and cos with the same bits on every processor. Those of a C library differ: it chooses
   among several by the instructions that the processor has. Basic operations alone, which IEEE 754
   rounds in one way; within one unit in the last place or a little more. The method and the
   coefficients of exp and log are those of FDLIBM (Sun Microsystems, 1993). */
#ifndef SPARSELSH_PORTABLE_MATH_H
#define SPARSELSH_PORTABLE_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10

/* 2^k, -1022 <= k <= 1023 */
static inline double power_of_two(int k)
{
    const uint64_t bits = (uint64_t)(k + 1023) << 52;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* x = k ln 2 + r with |r| <= ln 2 / 2; exp(r) by a rational function; times 2^k */
static inline double portable_exp(double x)
{
    if (!(x > -745.2))
        return x != x ? x : 0.0;
    if (x > 709.782712893384)
        return INFINITY;

    const int k = (int)(x * 1.44269504088896338700 + (x < 0 ? -0.5 : 0.5));
    const double high = x - k * LN2_HIGH, low = k * LN2_LOW, r = high - low, t = r * r;
    const double c = r - t * (1.66666666666666019037e-01 + t * (-2.77777777770155933842e-03
                       + t * (6.61375632143793436117e-05 + t * (-1.65339022054652515390e-06
                       + t * 4.13813679705723846039e-08))));
    const double y = 1.0 - ((low - r * c / (2.0 - c)) - high);

    if (k > 1023)
        return y * 2.0 * power_of_two(k - 1);
    return k >= -1021 ? y * power_of_two(k) : y * power_of_two(k + 1000) * power_of_two(-1000);
}

/* x = 2^k (1 + f), 1 + f within a factor of sqrt 2 of 1; log(1 + f) by s = f / (2 + f) */
static inline double portable_log(double x)
{
    if (!(x > 0) || x > 1.7976931348623157e308)
        return x == 0 ? -INFINITY : x > 0 ? x : NAN;

    int k;
    double m = frexp(x, &k);  /* exact */
    if (m < 0.70710678118654752440) {
        m *= 2;
        k--;
    }
    const double f = m - 1.0, s = f / (2.0 + f), z = s * s, w = z * z;
    const double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01
                           + w * 1.531383769920937332e-01));
    const double odd = z * (6.666666666666735130e-01 + w * (2.857142874366239149e-01
                          + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    const double half = 0.5 * f * f;
    return k * LN2_HIGH - ((half - (s * (half + (even + odd)) + k * LN2_LOW)) - f);
}

/* cos(pi x) for 0 <= x <= 1, by the series of cos and sin up to pi / 4 */
static inline double portable_cos_pi(double x)
{
    const double y = x > 0.5 ? 1.0 - x : x;
    const double a = 3.14159265358979323846 * (y > 0.25 ? 0.5 - y : y), q = a * a;
    double value;
    if (y > 0.25)
        value = a * (1 - q / 6 * (1 - q / 20 * (1 - q / 42 * (1 - q / 72 * (1 - q / 110
                  * (1 - q / 156 * (1 - q / 210)))))));
    else
        value = 1 - q / 2 * (1 - q / 12 * (1 - q / 30 * (1 - q / 56 * (1 - q / 90
                  * (1 - q / 132 * (1 - q / 182 * (1 - q / 240)))))));
    return x > 0.5 ? -value : value;
}

#endif
