package scram

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The example of RFC 7677, section 3.
func TestConversation(t *testing.T) {
	s := SHA256("user", "pencil")
	c, first, err := s.begin("rOprNGfwEbeRWgbNEkqO")
	require.NoError(t, err)
	require.Equal(t, "n,,n=user,r=rOprNGfwEbeRWgbNEkqO", string(first))
	done, proof, err := c.Next(t.Context(), []byte("r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"))
	require.NoError(t, err)
	require.False(t, done)
	require.Equal(t, "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", string(proof))
	done, _, err = c.Next(t.Context(), []byte("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="))
	require.NoError(t, err)
	require.True(t, done)

	for _, bad := range []string{"r=somebodyelse,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "r=x1,s=!,i=1", "r=x1,s=QQ==,i=99999999", ""} {
		c, _, err := s.begin("x")
		require.NoError(t, err)
		_, _, err = c.Next(t.Context(), []byte(bad))
		require.Error(t, err, bad)
	}
	c, _, err = s.begin("x")
	require.NoError(t, err)
	_, _, err = c.Next(t.Context(), []byte("r=x1,s=QQ==,i=1"))
	require.NoError(t, err)
	_, _, err = c.Next(t.Context(), []byte("v=QUFB"))
	require.ErrorContains(t, err, "does not know the password")
}
