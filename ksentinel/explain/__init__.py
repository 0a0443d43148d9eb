# SPDX-License-Identifier: Apache-2.0
"""
Explanations: which rule clause, which n-grams and which LIME weights spoke, and one paragraph that says it in words.

`explanation` puts an alert's together from `contributions` (exact), `surrogate` (LIME) and `wording` (templates).
"""
