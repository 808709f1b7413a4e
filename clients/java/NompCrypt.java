import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.time.LocalTime;
import java.time.OffsetDateTime;
import java.time.format.DateTimeFormatter;
import java.util.HexFormat;
import java.util.UUID;

/**
 * nomp_crypt for JDBC: the tenant of a transaction, and the few types that the
 * driver does not make of an encrypted column by itself.
 *
 * <pre>
 * NompCrypt.inTenant(connection, "s-0180-42", c -&gt; {
 *     ... c.prepareStatement("SELECT name, born FROM pupil WHERE ssn = ?") ...
 *     LocalDate born = NompCrypt.get(rows, "born", LocalDate.class);
 * });
 * </pre>
 *
 * The driver's own getters read an encrypted column as they read text:
 * getString, getBoolean, getInt, getLong, getDouble, getBigDecimal, getDate,
 * getTimestamp. getBytes, and getObject with a class of java.time or UUID, go
 * by the column's type and do not: get() is for those. Copy the file into your
 * project; it needs Java 17.
 */
public final class NompCrypt {
    private static final DateTimeFormatter LOCAL =
        DateTimeFormatter.ofPattern("yyyy-MM-dd HH:mm:ss[.SSSSSS][.SSSSS][.SSSS][.SSS][.SS][.S]");
    private static final DateTimeFormatter OFFSET =
        DateTimeFormatter.ofPattern("yyyy-MM-dd HH:mm:ss[.SSSSSS][.SSSSS][.SSSS][.SSS][.SS][.S][xxx][x]");

    private NompCrypt() {
    }

    /** What runs inside a tenant. */
    public interface Work {
        void run(Connection connection) throws SQLException;
    }

    /** From now on, to the end of the transaction; autocommit must be off. */
    public static void setTenant(Connection connection, String tenant) throws SQLException {
        if (connection.getAutoCommit()) {
            throw new SQLException("set the tenant in a transaction: setAutoCommit(false)");
        }
        try (PreparedStatement set =
                 connection.prepareStatement("SELECT set_config('nomp_crypt.tenant', ?, true)")) {
            set.setString(1, tenant);
            set.execute();
        }
    }

    /** A transaction inside that tenant; it is rolled back if the work fails. */
    public static void inTenant(Connection connection, String tenant, Work work)
        throws SQLException {
        boolean before = connection.getAutoCommit();
        boolean done = false;

        connection.setAutoCommit(false);
        try {
            setTenant(connection, tenant);
            work.run(connection);
            connection.commit();
            done = true;
        } finally {
            if (!done) {
                connection.rollback();
            }
            connection.setAutoCommit(before);
        }
    }

    /** A column as one of java.time's types, a UUID or a byte[]; null for NULL. */
    public static <T> T get(ResultSet rows, String column, Class<T> type) throws SQLException {
        String text = rows.getString(column);

        if (text == null) {
            return null;
        }
        if (type == LocalDate.class) {
            return type.cast(LocalDate.parse(text));
        }
        if (type == LocalTime.class) {
            return type.cast(LocalTime.parse(text));
        }
        if (type == LocalDateTime.class) {
            return type.cast(LocalDateTime.parse(text, LOCAL));
        }
        if (type == OffsetDateTime.class) {
            return type.cast(OffsetDateTime.parse(text, OFFSET));
        }
        if (type == byte[].class) {
            return type.cast(HexFormat.of().parseHex(text, 2, text.length()));
        }
        if (type == UUID.class) {
            return type.cast(UUID.fromString(text));
        }
        throw new SQLException("not for " + type + ": use the driver's getter");
    }
}
