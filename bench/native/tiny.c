// SPDX-License-Identifier: Apache-2.0
/* The smallest program that is worth a fork and an exec; linked statically. */
int main(void)
{
        return 0;
}
